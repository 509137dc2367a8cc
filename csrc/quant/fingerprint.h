// What tells files of packed weights of one build from those of a build that packs differently.
#pragma once

#include <cstdint>

namespace ryz {

// A hash of the bytes that small fixed matrices become in every layout of this folder. A changed
// layout changes it without anybody having to remember a version number.
std::uint64_t packing_fingerprint();

}  // namespace ryz
