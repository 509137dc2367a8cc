#include "kernels/avx512/ternary_linear.h"

namespace ryz::avx512 {
namespace {

// Per 64 bytes at one token: 4 vpandd + 4 vpdpbusd.
struct TwoBit {
  static constexpr std::size_t kPlanes = planes_of(TernaryFormat::kTwoBit);
  using Codes = __m512i;

  Codes decode(__m512i bytes) const { return bytes; }
  // The codes of a plane times 4^p.
  __m512i scaled_plane(Codes codes, std::size_t p) const {
    return _mm512_and_si512(codes, masks[p]);
  }
  __m512i plane(Codes codes, std::size_t p) const {
    return _mm512_and_si512(_mm512_srli_epi16(codes, static_cast<unsigned>(2 * p)), masks[0]);
  }

  __m512i masks[kPlanes] = {_mm512_set1_epi8(0x03), _mm512_set1_epi8(0x0c), _mm512_set1_epi8(0x30),
                            _mm512_set1_epi8(-0x40)};
};

}  // namespace

void ternary2_linear(const TernaryLinearArgs& a) noexcept { ternary_linear<TwoBit>(a); }

}  // namespace ryz::avx512
