#include "kernels/avx512/simd.h"
// The vector type comes first: the shared body is written against it.
#include "kernels/avx512/dot4.h"
#include "kernels/vector/lookup_linear.h"

namespace ryz::avx512vbmi {
namespace {

// A vpermb looks up in the tables of all four columns of a quad: the column picks the table by two
// more bits of the index, and weights stay as they are packed. What is found for a row lies in one
// dword, whose bytes a dot product adds up.
struct PartLookups {
  static constexpr std::size_t kVecs = kPanelVecs;

  template <std::size_t kPartBits, std::size_t kBits, std::size_t kQuads>
  static void add(std::size_t first_quad, const std::uint8_t* vectors, const std::uint8_t* tables,
                  __m512i* dots) {
    constexpr int kShift = kPartBits < kBits && kPartBits == 1 ? 2 : 0;
    constexpr LookupPart kPart{kPartBits};
    constexpr std::size_t kNibbles = kQuads / kPart.codes();
    constexpr std::size_t kRun = kNibbles < kPart.run() ? kNibbles : kPart.run();
    constexpr int kBias = static_cast<int>(kNibbles * kQuadColumns) * kPart.bias();
    // kTableOfColumn, above the nibble.
    const __m512i column = _mm512_set1_epi32(0x30102000);
    const __m512i nibble = _mm512_set1_epi8(15);
    const __m512i ones = _mm512_set1_epi8(1);
    const __m512i high_weight = _mm512_set1_epi8(1 << kPart.low_bits());
    const std::size_t first = first_quad / kPart.codes();
    __m512i sums[kVecs];
#pragma GCC unroll 4
    for (std::size_t v = 0; v < kVecs; ++v) {
      sums[v] = kShift == 0 ? _mm512_sub_epi32(dots[v], _mm512_set1_epi32(kBias))
                            : _mm512_set1_epi32(-kBias);
    }
#pragma GCC unroll 2
    for (std::size_t run = first; run < first + kNibbles; run += kRun) {
      __m512i low[kVecs] = {};
      __m512i high[kVecs] = {};
#pragma GCC unroll 4
      for (std::size_t n = run; n < run + kRun; ++n) {
        const __m512i low_table = load_group(tables + n * kNibbleTableBytes);
        const __m512i high_table = load_group(tables + n * kNibbleTableBytes + kPieceBytes);
#pragma GCC unroll 4
        for (std::size_t v = 0; v < kVecs; ++v) {
          const __m512i bytes = load_group(vectors + (v * kBits + n / 2) * kGroupBytes);
          const __m512i shifted = n % 2 == 0 ? bytes : _mm512_srli_epi16(bytes, 4);
          // (shifted & nibble) | column
          const __m512i index = _mm512_ternarylogic_epi32(shifted, nibble, column, 0xea);
          low[v] = _mm512_add_epi8(low[v], _mm512_permutexvar_epi8(index, low_table));
          high[v] = _mm512_add_epi8(high[v], _mm512_permutexvar_epi8(index, high_table));
        }
      }
#pragma GCC unroll 4
      for (std::size_t v = 0; v < kVecs; ++v) {
        dot4(sums[v], low[v], ones);
        dot4(sums[v], high[v], high_weight);
      }
    }
#pragma GCC unroll 4
    for (std::size_t v = 0; v < kVecs; ++v) {
      dots[v] = kShift == 0 ? sums[v] : add_i(dots[v], _mm512_slli_epi32(sums[v], kShift));
    }
  }
};

template <std::size_t kBits>
using Lookups = LookupProducts<kBits, PartLookups>;

}  // namespace

void lookup_linear(const GroupedLinearArgs& a) noexcept { grouped_linear_by<Lookups, 4>(a); }

}  // namespace ryz::avx512vbmi
