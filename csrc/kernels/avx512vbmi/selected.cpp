// One token through selected channels of a feed-forward. Which channels is known before a byte of
// them is read, so every record is prefetched: lists replace the forward stream of the panels.
#include <immintrin.h>

#include "kernels/avx512/dot4.h"
#include "kernels/avx512vbmi/five_trit.h"
#include "kernels/ops.h"

namespace ryz::avx512vbmi {
namespace {

constexpr std::size_t kPlanes = FiveTrit::kPlanes;
constexpr std::size_t kRows = 4;        // rows whose lanes are added up together
constexpr std::size_t kRowsAhead = 8;   // rows between a prefetch and its use
constexpr std::size_t kQuad = 4;        // columns added up by one vpdpbusd
constexpr std::size_t kChunkQuads = 8;  // columns whose bytes stay in L1 while units are passed
constexpr std::size_t kChunk = kQuad * kChunkQuads;
constexpr std::size_t kLanes = 16;

// Appends base + the set lanes of `mask`.
inline void append(__mmask16 mask, std::size_t base, std::int32_t* selected, std::size_t& count) {
  const __m512i lanes = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
  const __m512i index = _mm512_add_epi32(lanes, _mm512_set1_epi32(static_cast<int>(base)));
  // Compressed in registers: straight to memory it is microcode on some CPUs.
  _mm512_storeu_si512(selected + count, _mm512_maskz_compress_epi32(mask, index));
  count += static_cast<std::size_t>(__builtin_popcount(mask));
}

inline const std::uint8_t* record(const std::uint8_t* packed, std::size_t units, std::int32_t i) {
  return packed + static_cast<std::size_t>(i) * units * kUnitBytes;
}

// Lane r = the sum over all lanes of sums[r].
inline __m128i reduce_four(const __m512i (&sums)[kRows]) {
  const __m512i s01 = _mm512_add_epi32(_mm512_unpacklo_epi32(sums[0], sums[1]),
                                       _mm512_unpackhi_epi32(sums[0], sums[1]));
  const __m512i s23 = _mm512_add_epi32(_mm512_unpacklo_epi32(sums[2], sums[3]),
                                       _mm512_unpackhi_epi32(sums[2], sums[3]));
  const __m512i s =
      _mm512_add_epi32(_mm512_unpacklo_epi64(s01, s23), _mm512_unpackhi_epi64(s01, s23));
  const __m256i half = _mm256_add_epi32(_mm512_castsi512_si256(s), _mm512_extracti64x4_epi64(s, 1));
  return _mm_add_epi32(_mm256_castsi256_si128(half), _mm256_extracti128_si256(half, 1));
}

// The lanes of row i's sum, while the row kRowsAhead further on is asked for.
inline __m512i dot_row(const SelectedRowsArgs& a, std::size_t i) {
  const FiveTrit format;
  const std::size_t last = a.count - 1;
  const std::uint8_t* row = record(a.packed, a.units, a.selected[i]);
  const std::int32_t next = a.selected[i + kRowsAhead < last ? i + kRowsAhead : last];
  const std::ptrdiff_t ahead = record(a.packed, a.units, next) - row;
  _mm_prefetch(reinterpret_cast<const char*>(a.row_scale + next), _MM_HINT_T0);
  const std::int8_t* q = a.q;
  __m512i sums[kPlanes] = {};
  for (std::size_t unit = 0; unit < a.units; ++unit) {
    _mm_prefetch(reinterpret_cast<const char*>(row + ahead), _MM_HINT_T0);
    const auto codes = format.decode(load_group(row));
#pragma GCC unroll 5
    for (std::size_t p = 0; p < kPlanes; ++p) {
      dot4(sums[p], format.scaled_plane(codes, p), _mm512_loadu_si512(q + p * kUnitBytes));
    }
    row += kUnitBytes;
    q += kUnitColumns;
  }
  const __m512i low = _mm512_add_epi32(sums[0], _mm512_srai_epi32(sums[1], 2));
  const __m512i high =
      _mm512_add_epi32(_mm512_srai_epi32(sums[2], 4), _mm512_srai_epi32(sums[3], 6));
  return _mm512_add_epi32(_mm512_add_epi32(low, high), sums[4]);
}

// Rows first..first + 3 of the list. Beyond its end the last row stands in and is not stored.
inline void dot_rows(const SelectedRowsArgs& a, std::size_t first) {
  const std::size_t last = a.count - 1;
  __m512i totals[kRows];
#pragma GCC unroll 4
  for (std::size_t r = 0; r < kRows; ++r) {
    totals[r] = dot_row(a, first + r < last ? first + r : last);
  }
  alignas(16) std::int32_t exact[kRows];
  _mm_store_si128(reinterpret_cast<__m128i*>(exact),
                  _mm_sub_epi32(reduce_four(totals), _mm_set1_epi32(a.act_sum)));
  for (std::size_t r = 0; r < kRows && first + r < a.count; ++r) {
    const auto n = static_cast<std::size_t>(a.selected[first + r]);
    a.out[n] = static_cast<float>(exact[r]) * (a.row_scale[n] * a.act_scale);
  }
}

// A chunk of columns: where their records are, where those of the next chunk are, and the
// activations of each quad as one dword.
struct Chunk {
  const std::uint8_t* records[kChunk];
  const std::uint8_t* ahead[kChunk];
  std::int32_t q[kChunkQuads];
  std::size_t quads;
};

inline void gather(const SelectedColumnsArgs& a, std::size_t first, Chunk& chunk) {
  const std::size_t left = a.count - first;
  chunk.quads = ((left < kChunk ? left : kChunk) + kQuad - 1) / kQuad;
  const std::size_t last = a.count - 1;
  for (std::size_t i = 0; i < chunk.quads * kQuad; ++i) {
    const std::size_t j = first + i;
    const std::size_t next = j + kChunk;
    const std::int32_t k = a.selected[j < last ? j : last];
    chunk.records[i] = record(a.packed, a.units, k);
    chunk.ahead[i] = record(a.packed, a.units, a.selected[next < last ? next : last]);
    reinterpret_cast<std::int8_t*>(chunk.q)[i] = j <= last ? a.q[k] : std::int8_t{0};
  }
}

// Sums of half a unit, 16 outputs each: [two quarters][plane].
using HalfUnit = __m512i[2][kPlanes];

// Adds a chunk to the outputs of bytes 0..7 (kHigh false) or 8..15 of every 16 bytes of a unit.
// Bytes of four columns are interleaved while still packed: a dword is then 4 columns of 5 outputs.
template <bool kHigh>
void add_chunk(const Chunk& chunk, std::size_t offset, HalfUnit& sums) {
  const FiveTrit format;
  for (std::size_t quad = 0; quad < chunk.quads; ++quad) {
    const std::uint8_t* const* from = chunk.records + quad * kQuad;
    __m512i pairs[2];
#pragma GCC unroll 2
    for (std::size_t i = 0; i < 2; ++i) {
      const __m512i one = load_group(from[2 * i] + offset);
      const __m512i two = load_group(from[2 * i + 1] + offset);
      pairs[i] = kHigh ? _mm512_unpackhi_epi8(one, two) : _mm512_unpacklo_epi8(one, two);
    }
    const __m512i x = load_dword(chunk.q + quad);
#pragma GCC unroll 2
    for (std::size_t quarter = 0; quarter < 2; ++quarter) {
      const auto codes = format.decode(quarter == 0 ? _mm512_unpacklo_epi16(pairs[0], pairs[1])
                                                    : _mm512_unpackhi_epi16(pairs[0], pairs[1]));
#pragma GCC unroll 5
      for (std::size_t p = 0; p < kPlanes; ++p) {
        dot4(sums[quarter][p], format.scaled_plane(codes, p), x);
      }
    }
    if (kHigh) continue;
#pragma GCC unroll 4
    for (std::size_t i = 0; i < kQuad; ++i) {
      _mm_prefetch(reinterpret_cast<const char*>(chunk.ahead[quad * kQuad + i] + offset),
                   _MM_HINT_T0);
    }
  }
}

template <bool kHigh>
void pass(const Chunk& chunk, std::size_t offset, __m512i* stored) {
  HalfUnit sums;
#pragma GCC unroll 10
  for (std::size_t i = 0; i < 2 * kPlanes; ++i) sums[i / kPlanes][i % kPlanes] = stored[i];
  add_chunk<kHigh>(chunk, offset, sums);
#pragma GCC unroll 10
  for (std::size_t i = 0; i < 2 * kPlanes; ++i) stored[i] = sums[i / kPlanes][i % kPlanes];
}

// Brings a unit's sums into the order of its outputs: quarter m of lane l holds bytes
// 16*l + 4*m .. + 3.
inline void finish_unit(const SelectedColumnsArgs& a, std::size_t unit, const __m512i* stored) {
  alignas(64) std::int32_t sums[kUnitColumns];
  for (std::size_t p = 0; p < kPlanes; ++p) {
    const auto shift = static_cast<unsigned>(2 * (p % 4));
    for (std::size_t m = 0; m < 4; ++m) {
      const __m512i sum = _mm512_srai_epi32(stored[m * kPlanes + p], shift);
      alignas(64) std::int32_t lanes[kLanes];
      _mm512_store_si512(lanes, sum);
      for (std::size_t i = 0; i < kLanes; ++i) {
        sums[p * kUnitBytes + i / 4 * 16 + 4 * m + i % 4] = lanes[i];
      }
    }
  }
  const std::size_t first = unit * kUnitColumns;
  const std::size_t end = first + kUnitColumns < a.rows ? first + kUnitColumns : a.rows;
  for (std::size_t n = first; n < end; n += kLanes) {
    const std::size_t left = end - n;
    const auto mask = static_cast<__mmask16>(left >= kLanes ? 0xffffu : (1u << left) - 1);
    const __m512i exact =
        _mm512_sub_epi32(_mm512_load_si512(sums + (n - first)), _mm512_set1_epi32(a.act_sum));
    const __m512 scale =
        _mm512_mul_ps(_mm512_maskz_loadu_ps(mask, a.row_scale + n), _mm512_set1_ps(a.act_scale));
    const __m512 y = _mm512_add_ps(_mm512_maskz_loadu_ps(mask, a.residual + n),
                                   _mm512_mul_ps(_mm512_cvtepi32_ps(exact), scale));
    _mm512_mask_storeu_ps(a.out + n, mask, y);
  }
}

}  // namespace

void select_gates(const SelectGatesArgs& a) noexcept {
  std::size_t count = 0;
  for (std::size_t i = a.begin; i < a.end; i += kLanes) {
    const std::size_t left = a.end - i;
    const auto valid = static_cast<__mmask16>(left >= kLanes ? 0xffffu : (1u << left) - 1);
    const __m512 gate = _mm512_maskz_loadu_ps(valid, a.gate + i);
    const __mmask16 negative = _mm512_cmp_ps_mask(gate, _mm512_setzero_ps(), _CMP_LE_OQ);
    const __m512 lowest = _mm512_set1_ps(-3.402823466e38f);
    const __mmask16 finite = _mm512_cmp_ps_mask(gate, lowest, _CMP_GE_OQ);
    append(static_cast<__mmask16>(valid & ~(negative & finite)), i, a.selected, count);
  }
  *a.count = count;
}

void select_nonzero(const SelectNonzeroArgs& a) noexcept {
  std::size_t count = 0;
  for (std::size_t i = 0; i < a.n; i += kLanes) {
    const __m128i q = _mm_loadu_si128(reinterpret_cast<const __m128i*>(a.q + i));
    append(_mm_test_epi8_mask(q, q), i, a.selected, count);
  }
  *a.count = count;
}

void selected_rows(const SelectedRowsArgs& a) noexcept {
  for (std::size_t first = 0; first < a.count; first += kRows) dot_rows(a, first);
}

void selected_columns(const SelectedColumnsArgs& a) noexcept {
  const std::size_t units = a.unit_end - a.unit_begin;
  auto* stored = reinterpret_cast<__m512i*>(a.scratch);
  constexpr std::size_t kUnitSums = kUnitColumns / kLanes;
  for (std::size_t i = 0; i < units * kUnitSums; ++i) stored[i] = _mm512_setzero_si512();
  for (std::size_t first = 0; first < a.count; first += kChunk) {
    Chunk chunk;
    gather(a, first, chunk);
    for (std::size_t u = 0; u < units; ++u) {
      const std::size_t offset = (a.unit_begin + u) * kUnitBytes;
      pass<false>(chunk, offset, stored + u * kUnitSums);
      pass<true>(chunk, offset, stored + u * kUnitSums + 2 * kPlanes);
    }
  }
  for (std::size_t u = 0; u < units; ++u) {
    finish_unit(a, a.unit_begin + u, stored + u * kUnitSums);
  }
}

}  // namespace ryz::avx512vbmi
