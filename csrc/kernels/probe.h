// How fast a tier can multiply and add integers: the ceiling of prefill.
#pragma once

#include <optional>

#include "cpu/features.h"

namespace ryz {

// Multiply-adds per second of `threads` threads, the best of several passes; nothing for the scalar
// tier, which has no such instruction. Throws ValidationError.
std::optional<double> multiply_add_rate(Isa isa, int threads);

}  // namespace ryz
