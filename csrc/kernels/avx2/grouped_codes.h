// How a ymm of grouped codes, 4 consecutive k of 8 rows, comes to bit 0 (quant/grouped.h).
#pragma once

#include "kernels/avx2/bytes.h"
#include "quant/grouped.h"

namespace ryz::RYZ_TIER {
namespace {

// Bits [shift, shift + bits) of every byte.
template <std::size_t kBits>
inline __m256i bits_at(__m256i bytes, std::size_t shift) {
  if (kBits == 8) return bytes;
  const __m256i mask = _mm256_set1_epi8(static_cast<char>((1 << kBits) - 1));
  const __m256i shifted = shift == 0 ? bytes : _mm256_srli_epi16(bytes, static_cast<int>(shift));
  return _mm256_and_si256(shifted, mask);
}

// The codes of a quad in the block whose first vector is at `bytes`.
template <std::size_t kBits>
inline __m256i load_quad(const std::uint8_t* bytes, std::size_t quad) {
  if constexpr (kBits == 3) {
    const __m256i upper = load_quad<1>(bytes + 2 * kGroupBytes, quad);
    return _mm256_or_si256(load_quad<2>(bytes, quad), _mm256_slli_epi16(upper, 2));
  }
  constexpr std::size_t kPlanes = 8 / kBits;
  const auto* vector = reinterpret_cast<const __m256i*>(bytes + quad / kPlanes * kGroupBytes);
  return bits_at<kBits>(_mm256_load_si256(vector), quad % kPlanes * kBits);
}

}  // namespace
}  // namespace ryz::RYZ_TIER
