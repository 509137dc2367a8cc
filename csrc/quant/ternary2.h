// 2-bit ternary weights, interleaved for kernels that multiply 4 consecutive k of 16 rows at once.
//
// A panel is 64 rows, four groups of 16; a block is 16 columns. One (panel, block) is 256 bytes, 64
// for each group, and a panel's blocks follow each other: a kernel that walks the columns of a
// panel reads memory strictly forwards, which is what the hardware prefetchers reward (four
// separate streams reach half the bandwidth). In a group's 64 bytes, byte 4*r + j holds row r,
// columns 4*p + j for p = 0..3 in bits 2p+1..2p, so masking plane p of a 64-byte vector leaves, in
// dword r, the codes of 4 consecutive columns of row r. A code is the weight plus one (0, 1, 2).
// Padding rows and columns meet zero activations or are not stored.
//
//   packed[panel][block][group][4*r + j] |= (w[64*panel + 16*group + r][16*block + 4*p + j] + 1) <<
//   2*p
//
// The layout is the same for every tier.
#pragma once

#include <cstddef>
#include <cstdint>

namespace ryz {

inline constexpr std::size_t kGroupRows = 16;
inline constexpr std::size_t kPanelGroups = 4;
inline constexpr std::size_t kPanelRows = kGroupRows * kPanelGroups;
inline constexpr std::size_t kBlockColumns = 16;
inline constexpr std::size_t kGroupBytes = 64;
inline constexpr std::size_t kBlockBytes = kGroupBytes * kPanelGroups;

// |sum_k q * w| <= 128 * k must fit int32.
inline constexpr std::size_t kMaxInFeatures = (std::size_t{1} << 24) - kBlockColumns;

// Byte of (row, column) in a matrix of `blocks` column blocks, and the shift of its code.
constexpr std::size_t ternary2_byte(std::size_t row, std::size_t column, std::size_t blocks) {
  return ((row / kPanelRows) * blocks + column / kBlockColumns) * kBlockBytes +
         row % kPanelRows / kGroupRows * kGroupBytes + 4 * (row % kGroupRows) + column % 4;
}
constexpr unsigned ternary2_shift(std::size_t column) {
  return static_cast<unsigned>(column % kBlockColumns / 4 * 2);
}

}  // namespace ryz
