#include "kernels/avx2/simd.h"
// The vector type comes first: the shared body is written against it.
#include "kernels/vector/lookup_linear.h"
#include "kernels/vector/lookup_tables.h"

namespace ryz::avx2 {
namespace {

inline __m256i load_ymm(const std::uint8_t* p) {
  return _mm256_load_si256(reinterpret_cast<const __m256i*>(p));
}

// The 16 rows of a row group's vector, side by side, for each column of its quads.
struct Columns {
  __m256i even;  // columns 0 and 2, a lane each
  __m256i odd;   // 1 and 3
};

inline Columns load_columns(const std::uint8_t* vector) {
  const __m256i by_column = _mm256_broadcastsi128_si256(
      _mm_setr_epi8(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15));
  const __m256i join_halves = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);
  __m256i rows[2];
#pragma GCC unroll 2
  for (std::size_t i = 0; i < 2; ++i) {
    const __m256i columns = _mm256_shuffle_epi8(load_ymm(vector + i * 32), by_column);
    rows[i] = _mm256_permutevar8x32_epi32(columns, join_halves);
  }
  return {_mm256_unpacklo_epi64(rows[0], rows[1]), _mm256_unpackhi_epi64(rows[0], rows[1])};
}

// sum += table[index], as bytes.
inline void add_found(__m256i& sum, __m256i table, __m256i index) {
  sum = _mm256_add_epi8(sum, _mm256_shuffle_epi8(table, index));
}

// Adds the sums in two pieces to those of 16 rows, (sums of j 0..3) << kShift.
template <std::size_t kLowBits, int kShift>
inline void widen(__m256i low, __m256i high, __m256i* dots) {
  const __m256i weights = _mm256_set1_epi16(1 | (1 << kLowBits) << 8);
  const __m256i first = _mm256_maddubs_epi16(_mm256_unpacklo_epi8(low, high), weights);
  const __m256i last = _mm256_maddubs_epi16(_mm256_unpackhi_epi8(low, high), weights);
  __m256i words = _mm256_add_epi16(_mm256_permute2x128_si256(first, last, 0x20),
                                   _mm256_permute2x128_si256(first, last, 0x31));
  if constexpr (kShift != 0) words = _mm256_slli_epi16(words, kShift);
  dots[0] = add_i(dots[0], _mm256_cvtepi16_epi32(_mm256_castsi256_si128(words)));
  dots[1] = add_i(dots[1], _mm256_cvtepi16_epi32(_mm256_extracti128_si256(words, 1)));
}

// A pshufb looks up in the tables of two columns at once, so rows are brought side by side first.
struct PartLookups {
  static constexpr std::size_t kVecs = 4;
  static constexpr std::size_t kGroups = kVecs / kGroupVecs;

  template <std::size_t kPartBits, std::size_t kBits, std::size_t kQuads>
  static void add(std::size_t first_quad, const std::uint8_t* vectors, const std::uint8_t* tables,
                  __m256i* dots) {
    constexpr int kShift = kPartBits < kBits && kPartBits == 1 ? 2 : 0;
    constexpr LookupPart kPart{kPartBits};
    constexpr std::size_t kNibbles = kQuads / kPart.codes();
    // Two columns' sums meet in a byte.
    constexpr std::size_t kRun = kNibbles < kPart.run() / 2 ? kNibbles : kPart.run() / 2;
    constexpr int kBias = static_cast<int>(kNibbles * kQuadColumns) * kPart.bias();
    for (std::size_t v = 0; v < kVecs; ++v) {
      dots[v] = _mm256_sub_epi32(dots[v], _mm256_set1_epi32(kBias << kShift));
    }
    const __m256i mask = _mm256_set1_epi8(15);
    const std::size_t first = first_quad / kPart.codes();
#pragma GCC unroll 4
    for (std::size_t run = first; run < first + kNibbles; run += kRun) {
      __m256i low[kGroups] = {};
      __m256i high[kGroups] = {};
      Columns columns[kGroups];
#pragma GCC unroll 4
      for (std::size_t n = run; n < run + kRun; ++n) {
        const std::uint8_t* table = tables + n * kNibbleTableBytes;
#pragma GCC unroll 2
        for (std::size_t g = 0; g < kGroups; ++g) {
          if (n == run || n % 2 == 0) {
            columns[g] = load_columns(vectors + g * kBits * kGroupBytes + n / 2 * kGroupBytes);
          }
          const bool is_upper = n % 2 == 1;
          const auto index = [&](__m256i bytes) {
            return _mm256_and_si256(is_upper ? _mm256_srli_epi16(bytes, 4) : bytes, mask);
          };
          const __m256i even = index(columns[g].even);
          const __m256i odd = index(columns[g].odd);
          add_found(low[g], load_ymm(table), even);
          add_found(low[g], load_ymm(table + 32), odd);
          add_found(high[g], load_ymm(table + kPieceBytes), even);
          add_found(high[g], load_ymm(table + kPieceBytes + 32), odd);
        }
      }
#pragma GCC unroll 2
      for (std::size_t g = 0; g < kGroups; ++g) {
        widen<kPart.low_bits(), kShift>(low[g], high[g], dots + g * 2);
      }
    }
  }
};

template <std::size_t kBits>
using Lookups = LookupProducts<kBits, PartLookups>;

// The pair of codes at bit `shift` of every nibble as bytes, [16][2].
inline __m256i codes_of_nibbles(std::size_t bits, std::size_t shift) {
  const __m256i nibbles = _mm256_setr_epi16(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
  const __m256i mask = _mm256_set1_epi16(static_cast<short>((1 << bits) - 1));
  const __m256i first = _mm256_and_si256(_mm256_srli_epi16(nibbles, static_cast<int>(shift)), mask);
  const __m256i second =
      _mm256_and_si256(_mm256_srli_epi16(nibbles, static_cast<int>(shift + bits)), mask);
  return _mm256_or_si256(first, _mm256_slli_epi16(second, 8));
}

// The products of pairs of codes: two int8 of q, kQuadColumns apart, for each.
inline __m256i pair_sums(__m256i codes, const std::int8_t* q, bool has_second) {
  const int second = has_second ? q[kQuadColumns] : 0;
  const __m256i pair = _mm256_set1_epi16(static_cast<short>((second << 8) | (q[0] & 0xff)));
  return _mm256_maddubs_epi16(codes, pair);
}

void nibble_tables(LookupPart part, const std::int8_t* q, std::uint8_t* tables) {
  const bool has_second = part.bits < 4;
  const __m256i codes = codes_of_nibbles(part.bits, 0);
  const __m256i rest = codes_of_nibbles(part.bits, 2);
  const __m256i mask = _mm256_set1_epi16(static_cast<short>((1 << part.low_bits()) - 1));
  for (std::size_t j = 0; j < kQuadColumns; ++j) {
    int start = part.bias();
    for (std::size_t i = 0; i < part.codes(); ++i) start -= part.centre() * q[i * kQuadColumns + j];
    __m256i sums = _mm256_set1_epi16(static_cast<short>(start));
    sums = _mm256_add_epi16(sums, pair_sums(codes, q + j, has_second));
    if (part.bits == 1) {
      sums = _mm256_add_epi16(sums, pair_sums(rest, q + 2 * kQuadColumns + j, true));
    }
    const __m256i low = _mm256_and_si256(sums, mask);
    const __m256i high = _mm256_srli_epi16(sums, static_cast<int>(part.low_bits()));
    const __m256i pieces = _mm256_permute4x64_epi64(_mm256_packus_epi16(low, high), 0xd8);
    std::uint8_t* at = tables + kTableOfColumn[j] * kNibbleSums;
    _mm_store_si128(reinterpret_cast<__m128i*>(at), _mm256_castsi256_si128(pieces));
    _mm_store_si128(reinterpret_cast<__m128i*>(at + kPieceBytes),
                    _mm256_extracti128_si256(pieces, 1));
  }
}

}  // namespace

void lookup_tables(const LookupTablesArgs& a) noexcept { make_tables(a, nibble_tables); }

void lookup_linear(const GroupedLinearArgs& a) noexcept { grouped_linear_by<Lookups, 4>(a); }

}  // namespace ryz::avx2
