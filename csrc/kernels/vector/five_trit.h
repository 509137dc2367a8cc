// Five trits of a byte by 16-entry byte shuffles, for CPUs whose byte permutes are no wider.
//
// With n the byte's number, n + 121 = 27 * (c3 + 3 * c4) + (c0 + 3 * c1 + 9 * c2), c being the
// codes. The top nibble (sign and 16s) gives a quotient and a remainder by 27, off by what the low
// nibble adds or takes away; one borrow settles it:
//
//   offset = remainder[top] +- low nibble           in -27..14
//   digits = offset < 0 ? offset + 27 : offset      c0 + 3 * c1 + 9 * c2, in 0..26
//   quotients = quotient[top] - (offset < 0)        c3 + 3 * c4, in 0..8
//   low  = low_first[digits % 16] ^ (digits < 16 ? 0 : low_past[digits - 16])
//   high = high[quotients]
#pragma once

#include <cstdint>

#include "quant/ternary.h"

namespace ryz::RYZ_TIER {
namespace {

constexpr int kLowDigits = 27;

struct FiveTritTables {
  alignas(16) std::int8_t remainder[16];
  alignas(16) std::int8_t quotient[16];
  alignas(16) std::int8_t low_first[16];  // plane p's code at bit 2 * p
  alignas(16) std::int8_t low_past[16];
  alignas(16) std::int8_t high[16];  // plane 3's code at `plane3_bit`, plane 4's at bit 0
};

constexpr FiveTritTables make_five_trit(unsigned plane3_bit) {
  FiveTritTables tables{};
  for (int top = 0; top < 16; ++top) {
    // The low nibble adds 0..15 to a positive number and takes them from a negative one.
    const int from = top < 8 ? 121 + 16 * top : 121 - 16 * (top - 8);
    const int least = top < 8 ? 0 : from < 15 ? 0 : 15;
    const int part = (from - least) / kLowDigits;
    tables.remainder[top] = static_cast<std::int8_t>(from - kLowDigits * (part + 1));
    tables.quotient[top] = static_cast<std::int8_t>(part + 1);
  }
  const auto low = [](int n) { return n % 3 | n / 3 % 3 << 2 | n / 9 << 4; };
  for (int i = 0; i < 16; ++i) {
    tables.low_first[i] = static_cast<std::int8_t>(low(i));
    // A shuffle takes its index modulo 16: what low_first gives there is taken out again.
    tables.low_past[i] = static_cast<std::int8_t>(i < 11 ? low(16 + i) ^ low(i) : 0);
    tables.high[i] = static_cast<std::int8_t>(i < 9 ? i % 3 << plane3_bit | i / 3 : 0);
  }
  return tables;
}

}  // namespace
}  // namespace ryz::RYZ_TIER
