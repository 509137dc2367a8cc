#include "kernels/avx2/simd.h"
// The vector type comes first: the shared body is written against it.
#include "kernels/avx2/grouped_codes.h"
#include "kernels/avxvnni/dot_product.h"
#include "kernels/vector/grouped_linear.h"

namespace ryz::avxvnni {
namespace {

template <std::size_t kBits>
struct DotProducts {
  explicit DotProducts(const std::uint8_t* bytes) {
#pragma GCC unroll 8
    for (std::size_t quad = 0; quad < kBlockQuads; ++quad) {
      codes[quad] = load_quad<kBits>(bytes, quad);
    }
  }

  // `sum` and the products of kQuads quads.
  template <std::size_t kQuads>
  __m256i dot(std::size_t first_quad, const std::int8_t* q, __m256i sum) const {
#pragma GCC unroll 8
    for (std::size_t i = first_quad; i < first_quad + kQuads; ++i) {
      dot4(sum, codes[i], load_dword(q + i * kQuadColumns));
    }
    return sum;
  }

  __m256i codes[kBlockQuads];
};

}  // namespace

void grouped_linear(const GroupedLinearArgs& a) noexcept { grouped_linear_by<DotProducts>(a); }

}  // namespace ryz::avxvnni
