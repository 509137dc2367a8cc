// How fast this machine's memory can be read: the ceiling of decoding.
#pragma once

#include <cstddef>

namespace ryz {

// Bytes per second that `threads` threads read from a buffer of `bytes`, on huge pages where the
// OS has them: the best of several passes. Choose a buffer several times the last-level cache.
// Throws ValidationError for less than a cache line per thread, OutOfMemoryError.
double read_bandwidth(int threads, std::size_t bytes);

}  // namespace ryz
