#include "quant/fingerprint.h"

#include <cstddef>
#include <string_view>
#include <vector>

#include "quant/grouped_matrix.h"
#include "quant/screen.h"
#include "quant/ternary_matrix.h"
#include "quant/ternary_rows.h"

namespace ryz {
namespace {

// More than one panel, group and block of everything, and whole multiples of nothing.
constexpr std::size_t kRows = 83;
constexpr std::size_t kColumns = 541;

// FNV-1a.
void add(std::uint64_t& hash, std::string_view bytes) {
  for (const char byte : bytes) {
    hash = (hash ^ static_cast<unsigned char>(byte)) * 0x100000001b3u;
  }
}

void add(std::uint64_t& hash, const NamedBuffers& buffers) {
  for (const NamedBuffer& named : buffers) {
    add(hash, named.name);
    add(hash, {named.buffer->as<char>(), named.buffer->bytes()});
  }
}

}  // namespace

std::uint64_t packing_fingerprint() {
  std::vector<std::int8_t> codes;
  std::vector<float> weights;
  std::uint32_t state = 1;
  while (codes.size() < kRows * kColumns) {
    state = state * 1664525u + 1013904223u;
    codes.push_back(static_cast<std::int8_t>((state >> 24) % 3 - 1));
    weights.push_back(static_cast<float>(static_cast<std::int32_t>(state) >> 8));
  }
  const std::vector<float> scales(kRows, 0.5f);
  std::uint64_t hash = 0xcbf29ce484222325u;
  for (const TernaryFormat format : {TernaryFormat::kTwoBit, TernaryFormat::kFiveTrit}) {
    TernaryMatrix matrix(kRows, kColumns, format);
    matrix.pack_codes(0, codes.data(), scales);
    add(hash, format_name(format));
    add(hash, matrix.buffers());
    add(hash, TernaryRows::of_rows(matrix, 0, kRows).buffers());
    add(hash, TernaryRows::of_columns(matrix).buffers());
  }
  for (const int bits : {1, 2, 3, 4, 8}) {
    const auto width = static_cast<std::uint8_t>(bits);
    GroupedMatrix grouped(kRows, kColumns, {width, 64, DType::kF32, false});
    grouped.pack_float(0, weights.data(), DType::kF32, kRows);
    add(hash, grouped.buffers());
  }
  ScreenMatrix screen(kRows, kColumns, ScreenMatrix::Planes::kBoth);
  std::vector<float> scratch(ScreenMatrix::scratch_bytes(kColumns) / sizeof(float) + 1);
  screen.fill(weights.data(), DType::kF32, 0, kRows,
              reinterpret_cast<std::uint8_t*>(scratch.data()));
  add(hash, screen.buffers());
  return hash;
}

}  // namespace ryz
