// How fast the kernels to choose from are on this host, for a shape.
#pragma once

#include <cstddef>
#include <vector>

#include "cpu/features.h"

namespace ryz {

// Seconds for one product with a matrix [rows, columns].
struct KernelTiming {
  const char* name;
  double one_token;    // weights from memory, tables made on the way where the kernel reads some
  double many_tokens;  // kTimedTokens of them
};

inline constexpr std::size_t kTimedTokens = 48;

// One for each of ternary_kernels(isa), in their order: medians of passes that take turns. Costs
// some 100 MB for as long as it runs and, where vectors are, about 0.1 s for a shape of 10^7
// weights. Throws ValidationError on an unusable shape or number of threads, OutOfMemoryError.
std::vector<KernelTiming> time_ternary_kernels(Isa isa, std::size_t rows, std::size_t columns,
                                               int threads);

// The same of grouped_kernels(isa, bits), in groups of 32 columns.
std::vector<KernelTiming> time_grouped_kernels(Isa isa, std::size_t rows, std::size_t columns,
                                               std::size_t bits, int threads);

}  // namespace ryz
