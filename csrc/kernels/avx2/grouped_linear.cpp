#include "kernels/avx2/simd.h"
// The vector type comes first: the shared body is written against it.
#include "kernels/avx2/grouped_codes.h"
#include "kernels/avx2/multiply_add.h"
#include "kernels/vector/grouped_linear.h"

namespace ryz::avx2 {
namespace {

// Pairs of products in int16, which hold those of a block: 8 pairs of 2 * 15 * 128 at most. Codes
// of 8 bits are multiplied as two of 4.
template <std::size_t kCodeBits>
struct PairProducts {
  static constexpr std::size_t kBits = kCodeBits;
  static constexpr std::size_t kVecs = 1;
  static constexpr bool kReadsTables = false;
  static constexpr int kCentre = 0;
  static constexpr bool kSplit = kBits == 8;

  PairProducts(const std::uint8_t* block, std::size_t vec) {
    const std::uint8_t* bytes = vec_codes<kBits>(block, vec);
#pragma GCC unroll 8
    for (std::size_t quad = 0; quad < kBlockQuads; ++quad) {
      const __m256i codes = load_quad<kBits>(bytes, quad);
      low[quad] = kSplit ? bits_at<4>(codes, 0) : codes;
      if constexpr (kSplit) high[quad] = bits_at<4>(codes, 4);
    }
  }

  // `start` and the products of kQuads quads.
  template <std::size_t kQuads>
  void dot(std::size_t first_quad, const std::int8_t* q, __m256i start, __m256i* sum) const {
    __m256i low_pairs = _mm256_setzero_si256();
    __m256i high_pairs = _mm256_setzero_si256();
#pragma GCC unroll 8
    for (std::size_t i = first_quad; i < first_quad + kQuads; ++i) {
      const __m256i x = load_dword(q + i * kQuadColumns);
      multiply_add(low_pairs, low[i], x);
      if constexpr (kSplit) multiply_add(high_pairs, high[i], x);
    }
    *sum = _mm256_add_epi32(start, _mm256_madd_epi16(low_pairs, _mm256_set1_epi16(1)));
    if constexpr (kSplit) {
      *sum = _mm256_add_epi32(*sum, _mm256_madd_epi16(high_pairs, _mm256_set1_epi16(16)));
    }
  }

  __m256i low[kBlockQuads];
  __m256i high[kSplit ? kBlockQuads : 1];
};

}  // namespace

void grouped_linear(const GroupedLinearArgs& a) noexcept { grouped_linear_by<PairProducts, 8>(a); }

}  // namespace ryz::avx2
