// How a ymm of packed bytes becomes planes of codes (quant/ternary.h).
#pragma once

#include <immintrin.h>

#include "kernels/vector/five_trit.h"
#include "quant/ternary.h"

namespace ryz::RYZ_TIER {
namespace {

// Per 32 bytes at one token: a shift and 4 vpand.
struct TwoBit {
  static constexpr std::size_t kPlanes = planes_of(TernaryFormat::kTwoBit);
  static constexpr std::size_t kVecs = 4;  // at one token: 8 accumulators, 4 activations
  using Codes = __m256i;

  static constexpr bool is_at_bit2(std::size_t p) { return p % 2 == 1; }
  Codes decode(__m256i bytes) const { return bytes; }
  // The codes of a plane at bit 0 or 2.
  __m256i masked_plane(Codes codes, std::size_t p) const {
    return _mm256_and_si256(p < 2 ? codes : _mm256_srli_epi16(codes, 4), masks[p % 2]);
  }
  __m256i plane(Codes codes, std::size_t p) const {
    return _mm256_and_si256(_mm256_srli_epi16(codes, static_cast<int>(2 * p)), masks[0]);
  }

  __m256i masks[2] = {_mm256_set1_epi8(0x03), _mm256_set1_epi8(0x0c)};
};

constexpr FiveTritTables kFiveTrit = make_five_trit(2);

// The tables of vector/five_trit.h: 16 instructions for 32 bytes, and a shift and 5 vpand at one
// token.
struct FiveTrit {
  static constexpr std::size_t kPlanes = planes_of(TernaryFormat::kFiveTrit);
  static constexpr std::size_t kVecs = 2;
  struct Codes {
    __m256i low;   // planes 0, 1, 2 at bits 0, 2, 4
    __m256i high;  // planes 3, 4 at bits 2, 0
  };

  static constexpr bool is_at_bit2(std::size_t p) { return p == 1 || p == 3; }
  Codes decode(__m256i bytes) const {
    const __m256i nibble = _mm256_set1_epi8(0x0f);
    const __m256i top = _mm256_and_si256(_mm256_srli_epi16(bytes, 4), nibble);
    const __m256i rest = _mm256_sign_epi8(_mm256_and_si256(bytes, nibble), bytes);
    const __m256i offset = _mm256_add_epi8(_mm256_shuffle_epi8(remainder, top), rest);
    const __m256i borrow = _mm256_cmpgt_epi8(_mm256_setzero_si256(), offset);
    const __m256i quotients = _mm256_add_epi8(_mm256_shuffle_epi8(quotient, top), borrow);
    const __m256i digits =
        _mm256_min_epu8(offset, _mm256_add_epi8(offset, _mm256_set1_epi8(kLowDigits)));
    const __m256i past = _mm256_sub_epi8(digits, _mm256_set1_epi8(16));
    return {_mm256_xor_si256(_mm256_shuffle_epi8(low_first, digits),
                             _mm256_shuffle_epi8(low_past, past)),
            _mm256_shuffle_epi8(high, quotients)};
  }
  __m256i masked_plane(const Codes& codes, std::size_t p) const {
    switch (p) {
      case 0:
        return _mm256_and_si256(codes.low, masks[0]);
      case 1:
        return _mm256_and_si256(codes.low, masks[1]);
      case 2:
        return _mm256_and_si256(_mm256_srli_epi16(codes.low, 4), masks[0]);
      case 3:
        return _mm256_and_si256(codes.high, masks[1]);
      default:
        return _mm256_and_si256(codes.high, masks[0]);
    }
  }
  __m256i plane(const Codes& codes, std::size_t p) const {
    const __m256i codes_at = masked_plane(codes, p);
    return is_at_bit2(p) ? _mm256_srli_epi16(codes_at, 2) : codes_at;
  }

  static __m256i table(const std::int8_t* bytes) {
    return _mm256_broadcastsi128_si256(_mm_load_si128(reinterpret_cast<const __m128i*>(bytes)));
  }

  __m256i remainder = table(kFiveTrit.remainder);
  __m256i quotient = table(kFiveTrit.quotient);
  __m256i low_first = table(kFiveTrit.low_first);
  __m256i low_past = table(kFiveTrit.low_past);
  __m256i high = table(kFiveTrit.high);
  __m256i masks[2] = {_mm256_set1_epi8(0x03), _mm256_set1_epi8(0x0c)};
};

}  // namespace
}  // namespace ryz::RYZ_TIER
