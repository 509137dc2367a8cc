// 2-bit ternary weights, interleaved for kernels that multiply 4 consecutive k of 16 rows at once.
//
// Rows are taken in groups of 16 and columns in blocks of 16; one (group, block) is 64 bytes. Byte
// 4*r + j holds row r, columns 4*p + j for p = 0..3 in bits 2p+1..2p. So masking plane p of a
// 64-byte vector leaves, in dword r, the codes of 4 consecutive columns of row r. A code is the
// weight plus one (0, 1, 2); padding rows and columns hold code 1, weight zero.
//
//   packed[group][block][4*r + j] |= (w[16*group + r][16*block + 4*p + j] + 1) << 2*p
//
// The layout is the same for every tier.
#pragma once

#include <cstddef>
#include <cstdint>

namespace ryz {

inline constexpr std::size_t kGroupRows = 16;
inline constexpr std::size_t kBlockColumns = 16;
inline constexpr std::size_t kBlockBytes = 64;
inline constexpr std::uint8_t kZeroBlockByte = 0x55;  // four codes 1

// |sum_k q * w| <= 128 * k must fit int32.
inline constexpr std::size_t kMaxInFeatures = (std::size_t{1} << 24) - kBlockColumns;

// Byte of (row, column) in a matrix of `blocks` column blocks, and the shift of its code.
constexpr std::size_t ternary2_byte(std::size_t row, std::size_t column, std::size_t blocks) {
  return ((row / kGroupRows) * blocks + column / kBlockColumns) * kBlockBytes +
         4 * (row % kGroupRows) + column % 4;
}
constexpr unsigned ternary2_shift(std::size_t column) {
  return static_cast<unsigned>(column % kBlockColumns / 4 * 2);
}

}  // namespace ryz
