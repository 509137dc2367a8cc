// Ternary weights in panels, for kernels that multiply 4 consecutive k of 16 rows at once. Two
// formats share the structure and differ in how many columns a byte holds:
//
//   two-bit    4 codes in a byte, bits 2p+1..2p: 2.0 bits per weight, unpacked by masks
//   five-trit  5 base-3 digits in a byte: 1.6 bits per weight, unpacked by byte tables
//
// A panel is 64 rows, four groups of 16; a block is 16 or 20 columns. One (panel, block) is 256
// bytes, 64 for each group, and a panel's blocks follow each other: a kernel that walks the columns
// of a panel reads memory strictly forwards, which is what the hardware prefetchers reward (four
// separate streams reach half the bandwidth). In a group's 64 bytes, byte 4*r + j holds row r,
// columns 4*p + j for the planes p = 0..3 or 0..4; so one plane of a 64-byte vector is, in dword r,
// 4 consecutive columns of row r.
//
//   two-bit    byte = sum over p of (w[4*p + j] + 1) << 2*p
//   five-trit  n = sum over p of w[4*p + j] * 3^p, in -121..121; byte = n < 0 ? 0x80 | -n : n
//
// A code is the weight plus one (0, 1, 2). Padding rows and columns meet zero activations or are
// not stored. The layout is the same for every tier.
#pragma once

#include <cstddef>
#include <cstdint>

namespace ryz {

enum class TernaryFormat : std::uint8_t { kTwoBit, kFiveTrit };

inline constexpr std::size_t kGroupRows = 16;
inline constexpr std::size_t kPanelGroups = 4;
inline constexpr std::size_t kPanelRows = kGroupRows * kPanelGroups;
inline constexpr std::size_t kGroupBytes = 64;
inline constexpr std::size_t kBlockBytes = kGroupBytes * kPanelGroups;
inline constexpr std::size_t kPlaneColumns = 4;

constexpr const char* format_name(TernaryFormat format) {
  return format == TernaryFormat::kTwoBit ? "two_bit" : "five_trit";
}

// Columns of a block come in planes of 4.
constexpr std::size_t planes_of(TernaryFormat format) {
  return format == TernaryFormat::kTwoBit ? 4 : 5;
}
constexpr std::size_t block_columns(TernaryFormat format) {
  return kPlaneColumns * planes_of(format);
}

inline constexpr std::size_t kUnitBytes = 64;
inline constexpr std::size_t kUnitColumns = kUnitBytes * planes_of(TernaryFormat::kFiveTrit);

// Quantised rows are zero-padded to a multiple of both block widths, of a unit and of every vector
// width.
inline constexpr std::size_t kRowPadding = 320;

// |sum_k q * w| <= 128 * k must fit int32.
inline constexpr std::size_t kMaxInFeatures = (std::size_t{1} << 24) - kRowPadding;

// First byte of a row's dword in block 0 of a matrix of `blocks` column blocks; the next block's is
// kBlockBytes further.
constexpr std::size_t ternary_row_byte(std::size_t row, std::size_t blocks) {
  return row / kPanelRows * blocks * kBlockBytes + row % kPanelRows / kGroupRows * kGroupBytes +
         4 * (row % kGroupRows);
}

// The weight of plane `plane` in a byte.
constexpr int ternary_weight(TernaryFormat format, std::uint8_t byte, std::size_t plane) {
  if (format == TernaryFormat::kTwoBit) return ((byte >> (2 * plane)) & 3) - 1;
  int n = byte & 0x7f;
  for (std::size_t p = 0; p < plane; ++p) n = (n + 1) / 3;
  const int digit = (n + 1) % 3 - 1;
  return (byte & 0x80) != 0 ? -digit : digit;
}

}  // namespace ryz
