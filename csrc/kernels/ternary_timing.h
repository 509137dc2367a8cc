// How fast the ternary kernels are on this host, for a shape.
#pragma once

#include <cstddef>
#include <vector>

#include "cpu/features.h"

namespace ryz {

// Seconds for one product with a matrix [rows, columns].
struct TernaryTiming {
  double one_token;    // weights from memory
  double many_tokens;  // kTimedTokens of them
};

inline constexpr std::size_t kTimedTokens = 48;

// One for each of ternary_kernels(isa), in their order: medians of passes that take turns. Costs
// some 100 MB for as long as it runs and, where vectors are, about 0.1 s for a shape of 10^7
// weights. Throws ValidationError on an unusable shape or number of threads, OutOfMemoryError.
std::vector<TernaryTiming> time_ternary_kernels(Isa isa, std::size_t rows, std::size_t columns,
                                                int threads);

}  // namespace ryz
