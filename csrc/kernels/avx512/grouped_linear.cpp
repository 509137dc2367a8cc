#include "kernels/avx512/simd.h"
// The vector type comes first: the shared body is written against it.
#include "kernels/avx512/dot4.h"
#include "kernels/vector/grouped_linear.h"

namespace ryz::avx512 {
namespace {

// sum += dot of 4 codes of each row with the same 4 activations, which the instruction broadcasts.
inline void dot4_with(__m512i& sum, __m512i codes, const std::int8_t* x) {
#if defined(__GNUC__)
  using Dword [[gnu::may_alias, gnu::aligned(1)]] = int;
  __asm__("vpdpbusd %2%{1to16%}, %1, %0"
          : "+v"(sum)
          : "v"(codes), "m"(*reinterpret_cast<const Dword*>(x)));
#else
  dot4(sum, codes, load_dword(x));
#endif
}

// 8 zmm of codes at bit 0. Of 11 instructions of a block and token on the multiplier's ports 9 are
// products or take their place, so that products run at four fifths of their peak.
template <std::size_t kBits>
struct DotProducts {
  explicit DotProducts(const std::uint8_t* bytes) {
    constexpr std::size_t kPlanes = 8 / kBits;
    const __m512i mask = _mm512_set1_epi8(static_cast<char>((1 << kBits) - 1));
#pragma GCC unroll 8
    for (std::size_t quad = 0; quad < kBlockQuads; ++quad) {
      const __m512i vector = load_group(bytes + quad / kPlanes * kGroupBytes);
      const auto shift = static_cast<unsigned>(quad % kPlanes * kBits);
      const __m512i shifted = shift == 0 ? vector : _mm512_srli_epi16(vector, shift);
      codes[quad] = kBits == 8 ? vector : _mm512_and_si512(shifted, mask);
    }
  }

  // `sum` and the products of kQuads quads.
  template <std::size_t kQuads>
  __m512i dot(std::size_t first_quad, const std::int8_t* q, __m512i sum) const {
#pragma GCC unroll 8
    for (std::size_t i = 0; i < kQuads; ++i) {
      dot4_with(sum, codes[first_quad + i], q + (first_quad + i) * kQuadColumns);
    }
    return sum;
  }

  __m512i codes[kBlockQuads];
};

}  // namespace

void grouped_linear(const GroupedLinearArgs& a) noexcept { grouped_linear_by<DotProducts>(a); }

}  // namespace ryz::avx512
