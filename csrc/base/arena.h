// Memory for weights: many matrices in few large mappings. A matrix of its own mapping ends in up
// to 2 MiB of small pages, which for matrices of a few MiB is most of it.
#pragma once

#include <cstddef>

#include "base/aligned.h"

namespace ryz {

// A zeroed, cache-line aligned piece of a mapping that lives as long as any piece of it. From any
// thread. Throws OutOfMemoryError naming `what` and the size.
Buffer weight_buffer(std::size_t bytes, const char* what);

}  // namespace ryz
