// Decoding of five-trit bytes, 64 at a time, by byte permutes.
#pragma once

#include <immintrin.h>

#include "quant/ternary.h"

namespace ryz::avx512vbmi {
namespace {

// Five digits of every magnitude as two bytes: four codes in 2-bit fields, and the fifth.
struct DigitTables {
  alignas(64) std::uint8_t four[128];
  alignas(64) std::uint8_t fifth[128];
};

constexpr DigitTables make_tables() {
  DigitTables tables{};
  for (unsigned n = 0; n < 128; ++n) {
    const auto byte = static_cast<std::uint8_t>(n);
    unsigned four = 0;
    for (unsigned p = 0; p < 4; ++p) {
      four |= static_cast<unsigned>(ternary_weight(TernaryFormat::kFiveTrit, byte, p) + 1)
              << (2 * p);
    }
    tables.four[n] = static_cast<std::uint8_t>(four);
    tables.fifth[n] =
        static_cast<std::uint8_t>(ternary_weight(TernaryFormat::kFiveTrit, byte, 4) + 1);
  }
  return tables;
}

constexpr DigitTables kDigits = make_tables();

// Two 128-entry byte permutes turn a byte into the two-bit form and one code more; a negative byte
// takes each code c to 2 - c, which no field borrows from. Per 64 bytes at one token: 2 vpermi2b +
// 2 masked vpsubb + 4 vpandd + 5 vpdpbusd, and 20 % fewer bytes than two-bit.
struct FiveTrit {
  static constexpr std::size_t kPlanes = planes_of(TernaryFormat::kFiveTrit);
  struct Codes {
    __m512i four;
    __m512i fifth;
  };

  Codes decode(__m512i bytes) const {
    const __mmask64 negative = _mm512_movepi8_mask(bytes);
    const __m512i four = _mm512_permutex2var_epi8(four_low, bytes, four_high);
    const __m512i fifth = _mm512_permutex2var_epi8(fifth_low, bytes, fifth_high);
    return {_mm512_mask_sub_epi8(four, negative, _mm512_set1_epi8(-0x56), four),
            _mm512_mask_sub_epi8(fifth, negative, _mm512_set1_epi8(2), fifth)};
  }
  // The codes of a plane times 4^(p % 4).
  __m512i scaled_plane(const Codes& codes, std::size_t p) const {
    return p == 4 ? codes.fifth : _mm512_and_si512(codes.four, masks[p]);
  }
  __m512i plane(const Codes& codes, std::size_t p) const {
    if (p == 4) return codes.fifth;
    return _mm512_and_si512(_mm512_srli_epi16(codes.four, static_cast<unsigned>(2 * p)), masks[0]);
  }

  __m512i four_low = _mm512_load_si512(kDigits.four);
  __m512i four_high = _mm512_load_si512(kDigits.four + 64);
  __m512i fifth_low = _mm512_load_si512(kDigits.fifth);
  __m512i fifth_high = _mm512_load_si512(kDigits.fifth + 64);
  __m512i masks[4] = {_mm512_set1_epi8(0x03), _mm512_set1_epi8(0x0c), _mm512_set1_epi8(0x30),
                      _mm512_set1_epi8(-0x40)};
};

}  // namespace
}  // namespace ryz::avx512vbmi
