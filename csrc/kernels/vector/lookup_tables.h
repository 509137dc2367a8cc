// Walks the nibbles that tables are made for (kernels/lookup_format.h), for a tier's own way to
// make those of one.
#pragma once

#include "kernels/lookup_format.h"
#include "kernels/ops.h"

namespace ryz::RYZ_TIER {
namespace {

// Calls make(part, q, tables) for every nibble: q are its codes' activations,
// [codes][kQuadColumns].
template <typename Make>
inline void make_tables(const LookupTablesArgs& a, const Make& make) {
  std::uint8_t* tables = a.tables;
  for (std::size_t block = 0; block < a.blocks; ++block) {
    for (std::size_t i = 0; i < a.format.parts(); ++i) {
      const LookupPart part{a.format.part(i).bits};
      const std::int8_t* q = a.q + block * kScaleBlock;
      for (std::size_t n = 0; n < block_nibbles(part.bits); ++n, tables += kNibbleTableBytes) {
        make(part, q + n * part.codes() * kQuadColumns, tables);
      }
    }
  }
}

}  // namespace
}  // namespace ryz::RYZ_TIER
