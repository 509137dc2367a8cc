#include "kernels/avx2/simd.h"
// The vector type comes first: the shared body is written against it.
#include "kernels/avx2/grouped_codes.h"
#include "kernels/avxvnni/dot_product.h"
#include "kernels/vector/grouped_linear.h"

namespace ryz::avxvnni {
namespace {

template <std::size_t kCodeBits>
struct DotProducts {
  static constexpr std::size_t kBits = kCodeBits;
  static constexpr std::size_t kVecs = 1;
  static constexpr bool kReadsTables = false;
  static constexpr int kCentre = 0;
  DotProducts(const std::uint8_t* block, std::size_t vec) {
    const std::uint8_t* bytes = vec_codes<kBits>(block, vec);
#pragma GCC unroll 8
    for (std::size_t quad = 0; quad < kBlockQuads; ++quad) {
      codes[quad] = load_quad<kBits>(bytes, quad);
    }
  }

  // `start` and the products of kQuads quads.
  template <std::size_t kQuads>
  void dot(std::size_t first_quad, const std::int8_t* q, __m256i start, __m256i* sum) const {
    *sum = start;
#pragma GCC unroll 8
    for (std::size_t i = first_quad; i < first_quad + kQuads; ++i) {
      dot4(*sum, codes[i], load_dword(q + i * kQuadColumns));
    }
  }

  __m256i codes[kBlockQuads];
};

}  // namespace

void grouped_linear(const GroupedLinearArgs& a) noexcept { grouped_linear_by<DotProducts, 8>(a); }

}  // namespace ryz::avxvnni
