// Products of grouped weights and one token looked up in tables, for the loop of grouped_linear.h.
// A Part says how what a part of the codes picks from its tables is found and added up:
//
//   kVecs                                    vectors of rows that share what is loaded of a table
//   add<kPartBits, kBits, kQuads>(first_quad, vectors, tables, dots)
//                                            adds the sums of so many quads, times the weight of
//                                            the part in the code, to kVecs vectors
#pragma once

#include "kernels/vector/grouped_linear.h"

namespace ryz::RYZ_TIER {
namespace {

template <std::size_t kCodeBits, typename Part>
struct LookupProducts {
  static constexpr std::size_t kBits = kCodeBits;
  static constexpr std::size_t kVecs = Part::kVecs;
  static constexpr bool kReadsTables = true;
  static constexpr int kCentre = lookup_centre(kBits);

  LookupProducts(const std::uint8_t* block, std::size_t vec)
      : codes(vec_codes<kBits>(block, vec)) {}

  template <std::size_t kQuads>
  void dot(std::size_t first_quad, const std::uint8_t* tables, VecI start, VecI* dots) const {
#pragma GCC unroll 4
    for (std::size_t v = 0; v < kVecs; ++v) dots[v] = start;
    if constexpr (kBits == 3) {
      Part::template add<2, kBits, kQuads>(first_quad, codes, tables, dots);
      Part::template add<1, kBits, kQuads>(first_quad, codes + 2 * kGroupBytes,
                                           tables + block_table_bytes(2), dots);
    } else {
      Part::template add<kBits, kBits, kQuads>(first_quad, codes, tables, dots);
    }
  }

  const std::uint8_t* codes;
};

}  // namespace
}  // namespace ryz::RYZ_TIER
