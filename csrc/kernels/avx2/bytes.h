// What the integer kernels of the AVX2 tier share.
#pragma once

#include <immintrin.h>

#include "quant/ternary.h"

namespace ryz::RYZ_TIER {
namespace {

constexpr std::size_t kHalves = 2;  // ymm of 8 rows in a group
constexpr std::size_t kPrefetchBytes = 4096;

inline __m256i load_dword(const void* p) {
  int dword;
  __builtin_memcpy(&dword, p, sizeof dword);
  return _mm256_set1_epi32(dword);
}

}  // namespace
}  // namespace ryz::RYZ_TIER
