#include "kernels/avx512/simd.h"
// The vector type comes first: the shared body is written against it.
#include "kernels/avx512/dot4.h"
#include "kernels/vector/grouped_linear.h"

namespace ryz::avx512 {
namespace {

// The codes of a quad in the block whose first vector is at `bytes`, at bit 0.
template <std::size_t kBits>
inline __m512i load_quad(const std::uint8_t* bytes, std::size_t quad) {
  if constexpr (kBits == 3) {
    const __m512i upper = load_quad<1>(bytes + 2 * kGroupBytes, quad);
    return _mm512_or_si512(load_quad<2>(bytes, quad), _mm512_slli_epi16(upper, 2));
  }
  constexpr std::size_t kPlanes = 8 / kBits;
  const __m512i vector = load_group(bytes + quad / kPlanes * kGroupBytes);
  if (kBits == 8) return vector;
  const __m512i mask = _mm512_set1_epi8(static_cast<char>((1 << kBits) - 1));
  const auto shift = static_cast<unsigned>(quad % kPlanes * kBits);
  return _mm512_and_si512(shift == 0 ? vector : _mm512_srli_epi16(vector, shift), mask);
}

// 8 zmm for each of two row groups. Both meet an activation that is broadcast once: an operand that
// the instruction broadcasts itself takes the place of a load in every product, and loads are what
// runs out.
template <std::size_t kCodeBits>
struct DotProducts {
  static constexpr std::size_t kBits = kCodeBits;
  static constexpr std::size_t kVecs = 2;
  static constexpr bool kReadsTables = false;
  static constexpr int kCentre = 0;

  DotProducts(const std::uint8_t* block, std::size_t vec) {
#pragma GCC unroll 2
    for (std::size_t v = 0; v < kVecs; ++v) {
      const std::uint8_t* bytes = vec_codes<kBits>(block, vec + v);
#pragma GCC unroll 8
      for (std::size_t quad = 0; quad < kBlockQuads; ++quad) {
        codes[v][quad] = load_quad<kBits>(bytes, quad);
      }
    }
  }

  // `start` and the products of kQuads quads, by vector.
  template <std::size_t kQuads>
  void dot(std::size_t first_quad, const std::int8_t* q, __m512i start, __m512i* sums) const {
    for (std::size_t v = 0; v < kVecs; ++v) sums[v] = start;
#pragma GCC unroll 8
    for (std::size_t i = first_quad; i < first_quad + kQuads; ++i) {
      const __m512i x = load_dword(q + i * kQuadColumns);
#pragma GCC unroll 2
      for (std::size_t v = 0; v < kVecs; ++v) dot4(sums[v], codes[v][i], x);
    }
  }

  __m512i codes[kVecs][kBlockQuads];
};

}  // namespace

void grouped_linear(const GroupedLinearArgs& a) noexcept { grouped_linear_by<DotProducts, 8>(a); }

}  // namespace ryz::avx512
