#include "quant/ternary_matrix.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <utility>
#include <vector>

#include "base/arena.h"
#include "base/error.h"

namespace ryz {
namespace {

std::string at(std::size_t row, std::size_t column) {
  return "row " + std::to_string(row) + ", column " + std::to_string(column);
}

void check_scale(const char* op, float scale) {
  if (!std::isfinite(scale)) {
    throw QuantizationError(std::string("[") + op + "] weight scale is " + std::to_string(scale) +
                            ", expected a finite number");
  }
}

// Codes of four columns in the low two bits of each byte of a dword.
constexpr std::uint32_t kCodeMask = 0x03030303u;
constexpr std::size_t kMaxPlanes = 5;

std::uint32_t join_two_bit(const std::uint32_t (&words)[kMaxPlanes]) {
  return words[0] | words[1] << 2 | words[2] << 4 | words[3] << 6;
}

// Codes 0..2 sum to at most 242 in each byte, so four columns share one multiplication.
std::uint32_t join_five_trit(const std::uint32_t (&words)[kMaxPlanes]) {
  const std::uint32_t sum = words[0] + 3 * words[1] + 9 * words[2] + 27 * words[3] + 81 * words[4];
  std::uint32_t dword = 0;
  for (unsigned shift = 0; shift < 32; shift += 8) {
    const int n = static_cast<int>((sum >> shift) & 0xff) - 121;
    dword |= static_cast<std::uint32_t>(n < 0 ? 0x80 | -n : n) << shift;
  }
  return dword;
}

// The weights of every byte, plane by plane.
struct WeightTable {
  std::int8_t of[256][kMaxPlanes];
};

constexpr WeightTable make_table(TernaryFormat format) {
  WeightTable table{};
  for (std::size_t byte = 0; byte < 256; ++byte) {
    for (std::size_t p = 0; p < planes_of(format); ++p) {
      table.of[byte][p] =
          static_cast<std::int8_t>(ternary_weight(format, static_cast<std::uint8_t>(byte), p));
    }
  }
  return table;
}

constexpr WeightTable kTwoBitTable = make_table(TernaryFormat::kTwoBit);
constexpr WeightTable kFiveTritTable = make_table(TernaryFormat::kFiveTrit);

}  // namespace

TernaryMatrix::TernaryMatrix(std::size_t out_features, std::size_t in_features,
                             TernaryFormat format)
    : rows_(out_features), columns_(in_features), panels_(0), blocks_(0), format_(format) {
  if (rows_ == 0 || columns_ == 0 || columns_ > kMaxInFeatures || rows_ > kMaxInFeatures) {
    throw ValidationError("[ternary_matrix] shape [" + std::to_string(rows_) + ", " +
                          std::to_string(columns_) + "] must be within 1.." +
                          std::to_string(kMaxInFeatures));
  }
  panels_ = (rows_ + kPanelRows - 1) / kPanelRows;
  blocks_ = (columns_ + block_columns(format) - 1) / block_columns(format);
  packed_ = weight_buffer(panels_ * blocks_ * kBlockBytes, "ternary weights");
  row_scale_ = weight_buffer(panels_ * kPanelRows * sizeof(float), "row scales");
}

void TernaryMatrix::check_rows(const char* op, std::size_t row_begin, std::size_t rows) const {
  if (row_begin > rows_ || rows > rows_ - row_begin) {
    throw ValidationError(std::string("[") + op + "] rows " + std::to_string(row_begin) + "..+" +
                          std::to_string(rows) + " do not fit a matrix of " +
                          std::to_string(rows_) + " rows");
  }
  if (is_stored_) {
    throw ValidationError(std::string("[") + op + "] a matrix of stored arrays is only read");
  }
}

void TernaryMatrix::set_scale(std::size_t row_begin, std::size_t rows, float scale) {
  for (std::size_t i = 0; i < rows; ++i) row_scale_.as<float>()[row_begin + i] = scale;
  rows_packed_ += rows;
}

// Packs one row from bytes that hold each column's code at bits shift+1..shift, a block at a time:
// a dword of codes per plane becomes the row's dword of the block.
void TernaryMatrix::pack_row(std::size_t row, const std::uint8_t* codes, unsigned shift) {
  const std::size_t planes = planes_of(format_);
  const std::size_t width = block_columns(format_);
  std::uint8_t* out = packed_.as<std::uint8_t>() + ternary_row_byte(row, blocks_);
  std::uint32_t invalid = 0;
  for (std::size_t block = 0; block < blocks_; ++block, out += kBlockBytes) {
    std::uint32_t words[kMaxPlanes];
    const std::size_t left = columns_ - block * width;
    if (left >= width) {
      std::memcpy(words, codes + block * width, width);
      for (std::size_t p = 0; p < planes; ++p) words[p] = (words[p] >> shift) & kCodeMask;
    } else {
      std::uint8_t tail[kMaxPlanes * kPlaneColumns];
      for (std::size_t k = 0; k < width; ++k) {
        tail[k] = k < left ? (codes[block * width + k] >> shift) & 3 : 1;
      }
      std::memcpy(words, tail, width);
    }
    for (std::size_t p = 0; p < planes; ++p) {
      invalid |= words[p] & (words[p] >> 1) & 0x01010101u;
    }
    const std::uint32_t dword =
        format_ == TernaryFormat::kTwoBit ? join_two_bit(words) : join_five_trit(words);
    std::memcpy(out, &dword, sizeof dword);
  }
  if (invalid != 0) throw_invalid_code(row, codes, shift);
}

void TernaryMatrix::throw_invalid_code(std::size_t row, const std::uint8_t* codes,
                                       unsigned shift) const {
  std::size_t column = 0;
  while (((codes[column] >> shift) & 3) != 3) ++column;
  throw QuantizationError("[pack] code 3 at " + at(row, column) +
                          ": a ternary weight is stored as 0, 1 or 2; the file is damaged or "
                          "holds another format");
}

void TernaryMatrix::pack_hf(std::size_t row_begin, const std::uint8_t* packed, std::size_t quarter,
                            float scale) {
  check_rows("pack_hf", row_begin, 4 * quarter);
  check_scale("pack_hf", scale);
  for (unsigned part = 0; part < 4; ++part) {
    for (std::size_t r = 0; r < quarter; ++r) {
      pack_row(row_begin + part * quarter + r, packed + r * columns_, 2 * part);
    }
  }
  set_scale(row_begin, 4 * quarter, scale);
}

void TernaryMatrix::pack_codes(std::size_t row_begin, const std::int8_t* codes,
                               std::span<const float> scales) {
  check_rows("pack_codes", row_begin, scales.size());
  std::vector<std::uint8_t> row(columns_);
  for (std::size_t r = 0; r < scales.size(); ++r) {
    check_scale("pack_codes", scales[r]);
    for (std::size_t k = 0; k < columns_; ++k) {
      const int value = codes[r * columns_ + k];
      if (value < -1 || value > 1) {
        throw QuantizationError("[pack_codes] value " + std::to_string(value) + " at " +
                                at(row_begin + r, k) + " is not -1, 0 or 1");
      }
      row[k] = static_cast<std::uint8_t>(value + 1);
    }
    pack_row(row_begin + r, row.data(), 0);
    row_scale_.as<float>()[row_begin + r] = scales[r];
  }
  rows_packed_ += scales.size();
}

float TernaryMatrix::pack_master(std::size_t row_begin, const void* weights, DType dtype,
                                 std::size_t rows) {
  check_rows("pack_master", row_begin, rows);
  double total = 0.0;
  for (std::size_t r = 0; r < rows; ++r) {
    double row_total = 0.0;
    for (std::size_t k = 0; k < columns_; ++k) {
      row_total += std::fabs(element_to_f32(weights, dtype, r * columns_ + k));
    }
    if (!std::isfinite(row_total)) {
      throw QuantizationError("[pack_master] row " + std::to_string(row_begin + r) +
                              " holds a NaN or an infinity; the checkpoint is damaged");
    }
    total += row_total;
  }
  const double count = static_cast<double>(rows) * static_cast<double>(columns_);
  const float mean = std::fmax(static_cast<float>(total / count), 1e-5f);
  const float inverse = 1.0f / mean;
  std::vector<std::uint8_t> codes(columns_);
  for (std::size_t r = 0; r < rows; ++r) {
    for (std::size_t k = 0; k < columns_; ++k) {
      const float value = element_to_f32(weights, dtype, r * columns_ + k) * inverse;
      // Round half to even, then clamp: only the open intervals beyond +-0.5 leave zero.
      codes[k] = value > 0.5f ? 2 : value < -0.5f ? 0 : 1;
    }
    pack_row(row_begin + r, codes.data(), 0);
  }
  set_scale(row_begin, rows, mean);
  return mean;
}

void TernaryMatrix::adopt(std::map<std::string, Buffer> stored) {
  adopt_buffers(buffers(), std::move(stored));
  rows_packed_ = rows_;
  is_stored_ = true;
}

bool TernaryMatrix::is_zero_row(std::size_t row) const {
  const std::uint32_t zeros = format_ == TernaryFormat::kTwoBit ? 0x55555555u : 0;
  const std::uint8_t* bytes = packed() + ternary_row_byte(row, blocks_);
  for (std::size_t block = 0; block < blocks_; ++block, bytes += kBlockBytes) {
    std::uint32_t dword;
    std::memcpy(&dword, bytes, sizeof dword);
    if (dword != zeros) return false;
  }
  return true;
}

void TernaryMatrix::unpack_row(std::size_t row, std::int8_t* values) const {
  const WeightTable& weights = format_ == TernaryFormat::kTwoBit ? kTwoBitTable : kFiveTritTable;
  const std::uint8_t* bytes = packed() + ternary_row_byte(row, blocks_);
  const std::size_t width = block_columns(format_);
  for (std::size_t begin = 0; begin < columns_; begin += width, bytes += kBlockBytes) {
    std::int8_t block[kMaxPlanes * kPlaneColumns];
    for (std::size_t j = 0; j < kPlaneColumns; ++j) {
      for (std::size_t p = 0; p < kMaxPlanes; ++p) {
        block[kPlaneColumns * p + j] = weights.of[bytes[j]][p];
      }
    }
    std::memcpy(values + begin, block, std::min(width, columns_ - begin));
  }
}

}  // namespace ryz
