// What the integer kernels of the AVX-512 tier share: loads, prefetch and the dot of four bytes.
#pragma once

#include <immintrin.h>

#include "quant/ternary.h"

namespace ryz::RYZ_TIER {
namespace {

constexpr std::size_t kPrefetchBytes = 4096;

inline __m512i load_dword(const void* p) {
  int dword;
  __builtin_memcpy(&dword, p, sizeof dword);
  return _mm512_set1_epi32(dword);
}

// sum += dot of 4 unsigned bytes with 4 signed ones, per dword. Written as assembly where
// the compiler allows: GCC 12 copies the accumulator around the intrinsic, which costs half the
// speed.
inline void dot4(__m512i& sum, __m512i unsigned_bytes, __m512i signed_bytes) {
#if defined(__GNUC__)
  __asm__("vpdpbusd %2, %1, %0" : "+v"(sum) : "v"(unsigned_bytes), "v"(signed_bytes));
#else
  sum = _mm512_dpbusd_epi32(sum, unsigned_bytes, signed_bytes);
#endif
}

inline __m512i load_group(const void* p) { return _mm512_load_si512(p); }

inline void prefetch_groups(const void* bytes, std::size_t groups) {
  for (std::size_t g = 0; g < groups; ++g) {
    _mm_prefetch(static_cast<const char*>(bytes) + kPrefetchBytes + g * kGroupBytes, _MM_HINT_T0);
  }
}

}  // namespace
}  // namespace ryz::RYZ_TIER
