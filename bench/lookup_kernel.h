// The trial of decision 13: a linear of grouped weights for one token by lookup tables, exact, in
// AVX2. A bit of 4 consecutive k picks one of the 16 sums that their activations can have; those
// of a block's 8 quads are added up, and the planes joined by shifts.
//
// A sum of 4 int8 plus 512 takes 10 bits. In two tables, of the low and the high 5, the sums of a
// block stay below 256: they are added as bytes and widened once per block.
//
// The layout is that of quant/grouped.h but for the codes, [pass][quad][2][32 bytes] per block.
// A byte is one row's 4 columns: low nibble the even plane, high nibble the odd one. A pass over
// 2-bit codes takes 64 rows, over 4-bit codes the two pairs of planes of 32 rows.
#pragma once

#include <immintrin.h>

#include "kernels/avx2/simd.h"
// The vector type comes first: the shared body is written against it.
#include "kernels/vector/grouped_linear.h"

namespace ryz::RYZ_TIER {
namespace {

constexpr std::size_t kHalfRows = 32;
constexpr std::size_t kQuadBytes = 64;
constexpr std::size_t kPassBytes = kBlockQuads * kQuadBytes;
constexpr std::size_t kTableBytes = 32;  // 16 low pieces, 16 high ones
constexpr std::size_t kPrefetchBytes = 2048;
constexpr int kTableBias = 512;

// Where in a block's codes a bit of a code is, as a byte and the bit of it.
constexpr std::size_t plane_byte(std::size_t bits, std::size_t row, std::size_t quad,
                                 std::size_t plane) {
  const std::size_t half = row / kHalfRows;
  const std::size_t pass = bits == 2 ? 0 : half;
  return pass * kPassBytes + quad * kQuadBytes + (bits == 2 ? half : plane / 2) * kHalfRows +
         row % kHalfRows;
}
constexpr std::size_t plane_shift(std::size_t column, std::size_t plane) {
  return column % kQuadColumns + plane % 2 * kQuadColumns;
}

// Tables of one token, [blocks][quad][kTableBytes].
inline void build_tables(const GroupedLinearArgs& a, std::uint8_t* tables) {
  // By index: whether each column of a pair is in the sum.
  const __m256i first_pair =
      _mm256_broadcastsi128_si256(_mm_setr_epi8(0, 0, 1, 0, 0, 1, 1, 1, 0, 0, 1, 0, 0, 1, 1, 1));
  const __m256i second_pair = _mm256_setr_epi8(0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 1, 0, 1, 0, 1, 0, 0, 1,
                                               0, 1, 0, 1, 0, 1, 1, 1, 1, 1, 1, 1, 1, 1);
  for (std::size_t block = 0; block < a.records * a.format.record_blocks(); ++block) {
    const std::int8_t* q = a.q + block * a.block_stride * kScaleBlock;
    for (std::size_t i = 0; i < kScaleBlock; i += kQuadColumns, tables += kTableBytes) {
      std::int16_t pairs[2];
      __builtin_memcpy(pairs, q + i, sizeof pairs);
      const __m256i pair_sums =
          _mm256_add_epi16(_mm256_maddubs_epi16(first_pair, _mm256_set1_epi16(pairs[0])),
                           _mm256_maddubs_epi16(second_pair, _mm256_set1_epi16(pairs[1])));
      const __m256i sums = _mm256_add_epi16(pair_sums, _mm256_set1_epi16(kTableBias));
      const __m256i pieces = _mm256_packus_epi16(_mm256_and_si256(sums, _mm256_set1_epi16(31)),
                                                 _mm256_srli_epi16(sums, 5));
      _mm256_store_si256(reinterpret_cast<__m256i*>(tables),
                         _mm256_permute4x64_epi64(pieces, 0xd8));
    }
  }
}

// Keeps the compiler from loading v anew wherever it is used.
inline __m256i in_register_i(__m256i v) {
  __asm__("" : "+x"(v));
  return v;
}

// sum += table[index]. As assembly for the reason in avx2/multiply_add.h: intrinsics spill, which
// costs half of the speed.
inline void add_looked_up(__m256i& sum, __m256i table, __m256i index) {
  __m256i found;
  __asm__(
      "vpshufb %3, %2, %1\n\t"
      "vpaddb %1, %0, %0"
      : "+x"(sum), "=&x"(found)
      : "x"(table), "x"(index));
}

inline __m256i load_table(const std::uint8_t* table) {
  __m256i v;
  __asm__ volatile("vbroadcasti128 %1, %0"
                   : "=x"(v)
                   : "m"(*reinterpret_cast<const __m128i*>(table)));
  return v;
}

// Sums of a pair of planes, by piece, as bytes.
struct PairSums {
  // Rows [0, 8) and [16, 24), or the 8 after each, in int16: the even plane's sum and twice the
  // odd one's.
  template <bool kUpper>
  __m256i words() const {
    const auto join = [](__m256i a, __m256i b) {
      return kUpper ? _mm256_unpackhi_epi8(a, b) : _mm256_unpacklo_epi8(a, b);
    };
    const __m256i low_words = _mm256_maddubs_epi16(join(low[0], low[1]), _mm256_set1_epi16(0x0201));
    const __m256i high_words =
        _mm256_maddubs_epi16(join(high[0], high[1]), _mm256_set1_epi16(0x4020));
    return _mm256_add_epi16(low_words, high_words);
  }

  __m256i low[2];
  __m256i high[2];
};

// The products of 32 rows, in order: one pair of planes.
inline void widen_rows(const PairSums& sums, __m256i start, __m256i* dots) {
  const __m256i lower = sums.words<false>();
  const __m256i upper = sums.words<true>();
  dots[0] = add_i(start, _mm256_cvtepi16_epi32(_mm256_castsi256_si128(lower)));
  dots[1] = add_i(start, _mm256_cvtepi16_epi32(_mm256_castsi256_si128(upper)));
  dots[2] = add_i(start, _mm256_cvtepi16_epi32(_mm256_extracti128_si256(lower, 1)));
  dots[3] = add_i(start, _mm256_cvtepi16_epi32(_mm256_extracti128_si256(upper, 1)));
}

// As widen_rows, of two pairs of planes, the second of four times the weight.
inline void join_pairs(const PairSums (&sums)[2], __m256i start, __m256i* dots) {
  const __m256i weights = _mm256_set1_epi32(0x00040001);
  const __m256i words[2][2] = {{sums[0].words<false>(), sums[1].words<false>()},
                               {sums[0].words<true>(), sums[1].words<true>()}};
#pragma GCC unroll 2
  for (std::size_t i = 0; i < 2; ++i) {
    const __m256i* w = words[i];
    const __m256i first = _mm256_madd_epi16(_mm256_unpacklo_epi16(w[0], w[1]), weights);
    const __m256i second = _mm256_madd_epi16(_mm256_unpackhi_epi16(w[0], w[1]), weights);
    dots[i] = add_i(start, _mm256_permute2x128_si256(first, second, 0x20));
    dots[i + 2] = add_i(start, _mm256_permute2x128_si256(first, second, 0x31));
  }
}

// The lookups of a pass.
inline void look_up(const std::uint8_t* codes, const std::uint8_t* tables, PairSums (&sums)[2]) {
  const __m256i mask = in_register_i(_mm256_set1_epi8(15));
#pragma GCC unroll 8
  for (std::size_t quad = 0; quad < kBlockQuads; ++quad, codes += kQuadBytes) {
    prefetch_ahead<kQuadBytes>(codes, kPrefetchBytes);
    const __m256i low = load_table(tables + quad * kTableBytes);
    const __m256i high = load_table(tables + quad * kTableBytes + kTableBytes / 2);
#pragma GCC unroll 2
    for (std::size_t i = 0; i < 2; ++i) {
      const __m256i bytes =
          in_register_i(_mm256_load_si256(reinterpret_cast<const __m256i*>(codes + i * kHalfRows)));
      const __m256i even = _mm256_and_si256(bytes, mask);
      const __m256i odd = _mm256_and_si256(_mm256_srli_epi16(bytes, 4), mask);
      add_looked_up(sums[i].low[0], low, even);
      add_looked_up(sums[i].high[0], high, even);
      add_looked_up(sums[i].low[1], low, odd);
      add_looked_up(sums[i].high[1], high, odd);
    }
  }
}

// The block's products of a panel's vectors of rows.
template <std::size_t kBits>
inline void block_dots(const std::uint8_t* codes, const std::uint8_t* tables,
                       std::int32_t minus_sum, __m256i* dots) {
  constexpr int kZero = kBits == 2 ? 1 : 8;
  constexpr int kBias = kTableBias * static_cast<int>(kBlockQuads) * ((1 << kBits) - 1);
  const __m256i start = _mm256_set1_epi32(minus_sum * kZero - kBias);
#pragma GCC unroll 2
  for (std::size_t half = 0; half < 2; half += 4 / kBits, codes += kPassBytes) {
    PairSums sums[2] = {};
    look_up(codes, tables, sums);
    if constexpr (kBits == 2) {
      widen_rows(sums[0], start, dots);
      widen_rows(sums[1], start, dots + kHalfRows / kLanes);
    } else {
      join_pairs(sums, start, dots + half * kHalfRows / kLanes);
    }
  }
}

// One token, `tables` to be kept in.
template <std::size_t kBits>
void lookup_linear(const GroupedLinearArgs& a, std::uint8_t* tables) {
  const GroupedFormat& f = a.format;
  build_tables(a, tables);
  const std::uint8_t* record = a.packed + a.panel_begin * a.records * f.record_bytes();
  for (std::size_t panel = a.panel_begin; panel < a.panel_end; ++panel) {
    Vec sums[kPanelVecs] = {};
    std::size_t index = 0;
    for (std::size_t r = 0; r < a.records; ++r, record += f.record_bytes()) {
      const std::uint8_t* codes = record + f.codes_offset();
      for (std::size_t i = 0; i < f.record_blocks(); ++i, ++index, codes += f.block_bytes()) {
        const ActivationBlock& x = a.blocks[index * a.block_stride];
        VecI dots[kPanelVecs];
        block_dots<kBits>(codes, tables + index * kBlockQuads * kTableBytes, x.minus_sum, dots);
#pragma GCC unroll 8
        for (std::size_t v = 0; v < kPanelVecs; ++v) {
          const Vec scale = mul(load_scales(f, record, v * kLanes), broadcast(x.scale));
          sums[v] = fma(to_float(dots[v]), scale, sums[v]);
        }
      }
    }
    for (std::size_t v = 0; v < kPanelVecs; ++v) {
      finish(a, panel * kPanelRows + v * kLanes, 0, sums[v]);
    }
  }
}

}  // namespace
}  // namespace ryz::RYZ_TIER
