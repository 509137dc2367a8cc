// Tables of sums that one token's activations can have, for kernels that look products up by the
// weights' bits instead of computing them (docs/decisions/0013-grouped-lookups.md).
//
// A nibble of a packed byte (quant/grouped.h) holds the codes of 4 / bits quads, all of one row and
// of one column j of a quad. So for every block, vector and nibble there are four tables of 16 sums
//
//   table[j][nibble] = sum of (code - centre) * q over the nibble's codes        + bias
//
// by the order kTableOfColumn. The biased sums are held in two pieces, low bits and the rest, each
// small enough for the bytes of several lookups to be added as bytes:
//
//   [block][vector][nibble, low one first][piece, low one first][table][16]
#pragma once

#include <cstddef>
#include <cstdint>

#include "quant/grouped.h"

namespace ryz {

inline constexpr std::size_t kNibbleSums = 16;
inline constexpr std::size_t kPieceBytes = kQuadColumns * kNibbleSums;
inline constexpr std::size_t kNibbleTableBytes = 2 * kPieceBytes;
// Where the table of a column is: a ymm holds those of columns 0 and 2, or of 1 and 3.
inline constexpr std::size_t kTableOfColumn[kQuadColumns] = {0, 2, 1, 3};

// Nibbles of a row in a block, and bytes of the tables for them.
constexpr std::size_t block_nibbles(std::size_t bits) { return 2 * bits; }
constexpr std::size_t block_table_bytes(std::size_t bits) {
  return block_nibbles(bits) * kNibbleTableBytes;
}

// What the tables of a part of the codes hold.
struct LookupPart {
  std::size_t bits;  // 1, 2 or 4

  constexpr std::size_t codes() const { return 4 / bits; }  // in a nibble
  constexpr int centre() const { return bits == 4 ? 8 : 1; }
  // With |q| <= 127, |sum| is 508 at most in 1 and 2 bits and 1016 in 4.
  constexpr int bias() const { return bits == 4 ? 1024 : 512; }
  constexpr std::size_t low_bits() const { return bits == 4 ? 6 : 5; }
  // Lookups whose pieces add up to a byte at most.
  constexpr std::size_t run() const { return bits == 4 ? 4 : 8; }
};

// What the sums of all parts of a code leave out of it.
constexpr int lookup_centre(std::size_t bits) {
  return bits == 3 ? LookupPart{2}.centre() + 4 * LookupPart{1}.centre()
                   : LookupPart{bits}.centre();
}

}  // namespace ryz
