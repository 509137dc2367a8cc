// The two planes of a coded LM head (quant/screen.h), for the kernels that read them.
//
// A weight is scale[row] * (c + kRestStep * (q - 1.5)): c from 5 bits, q from 2 more.
//
// High plane: c = +-kScreenLevels[nibble], read for every row. The levels are the Lloyd-Max
// quantiser of a Gaussian: its error is 5.0 % of the row's norm, where evenly spaced levels leave
// 5.8 %, which would triple the rows that a screen lets through. Panels of 64 rows as in ternary.h;
// a block is 8 columns of a panel in five cache lines, four groups of nibbles and one of signs:
//
//   byte 64*g + 4*r + j     row r of group g: column j in the low nibble, column 4 + j in the high
//   byte 256 + 4*r + j      bit 2*g + s: whether row r of group g, column 4*s + j, is negative
//
// Low plane: q in 0..3, row by row, because only some rows' are read. 256 columns are 64 bytes;
// bits 2p+1..2p of byte i belong to column 64*p + i.
//
// Padding columns meet zero digits of the hidden state.
#pragma once

#include <cstddef>
#include <cstdint>

#include "quant/ternary.h"

namespace ryz {

inline constexpr std::size_t kScreenSteps = 2;  // of kPlaneColumns columns in a block
inline constexpr std::size_t kScreenColumns = kScreenSteps * kPlaneColumns;
inline constexpr std::size_t kScreenSigns = kPanelGroups * kGroupBytes;
inline constexpr std::size_t kScreenBlockBytes = kScreenSigns + kGroupBytes;
inline constexpr std::size_t kRestColumns = 256;
inline constexpr std::size_t kRestBytes = 64;
inline constexpr std::size_t kRestPlanes = 4;

inline constexpr std::uint8_t kScreenLevels[16] = {3,  8,  13, 18, 24, 29, 35,  41,
                                                   47, 54, 61, 70, 79, 90, 105, 127};
// Least error over both planes: wider than a quarter of an inner cell, because outer ones are wide.
inline constexpr float kRestStep = 1.75f;

// What a product's unsigned operand adds to c, so that it is within [1, 255].
inline constexpr std::int32_t kScreenBias = 128;

// c of a row of the group `group`, `lane` being 4*r + j, in step `step` of a block.
constexpr int screen_code(const std::uint8_t* block, std::size_t group, std::size_t lane,
                          std::size_t step) {
  const int level = kScreenLevels[(block[group * kGroupBytes + lane] >> (4 * step)) & 15];
  const bool is_negative = ((block[kScreenSigns + lane] >> (kScreenSteps * group + step)) & 1) != 0;
  return is_negative ? -level : level;
}

}  // namespace ryz
