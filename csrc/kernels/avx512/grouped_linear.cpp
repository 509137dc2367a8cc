#include "kernels/avx512/simd.h"
// The vector type comes first: the shared body is written against it.
#include "kernels/avx512/dot4.h"
#include "kernels/vector/grouped_linear.h"

namespace ryz::avx512 {
namespace {

// Codes at bit 0, 8 zmm for each of two row groups. Both meet an activation that is broadcast once:
// an operand that the instruction broadcasts itself takes the place of a load in every product, and
// loads are what runs out.
template <std::size_t kCodeBits>
struct DotProducts {
  static constexpr std::size_t kBits = kCodeBits;
  static constexpr std::size_t kVecs = 2;

  DotProducts(const std::uint8_t* block, std::size_t vec) {
    constexpr std::size_t kPlanes = 8 / kBits;
    const __m512i mask = _mm512_set1_epi8(static_cast<char>((1 << kBits) - 1));
#pragma GCC unroll 2
    for (std::size_t v = 0; v < kVecs; ++v) {
      const std::uint8_t* bytes = vec_codes<kBits>(block, vec + v);
#pragma GCC unroll 8
      for (std::size_t quad = 0; quad < kBlockQuads; ++quad) {
        const __m512i vector = load_group(bytes + quad / kPlanes * kGroupBytes);
        const auto shift = static_cast<unsigned>(quad % kPlanes * kBits);
        const __m512i shifted = shift == 0 ? vector : _mm512_srli_epi16(vector, shift);
        codes[v][quad] = kBits == 8 ? vector : _mm512_and_si512(shifted, mask);
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

void grouped_linear(const GroupedLinearArgs& a) noexcept { grouped_linear_by<DotProducts>(a); }

}  // namespace ryz::avx512
