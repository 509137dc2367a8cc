#include "quant/ternary_matrix.h"

#include <cmath>
#include <cstring>
#include <string>
#include <vector>

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

float load_weight(const void* weights, DType dtype, std::size_t i) {
  switch (dtype) {
    case DType::kF32: {
      float value;
      std::memcpy(&value, static_cast<const char*>(weights) + i * 4, sizeof value);
      return value;
    }
    case DType::kF16:
      return f16_to_f32(static_cast<const std::uint16_t*>(weights)[i]);
    case DType::kBF16:
      return bf16_to_f32(static_cast<const std::uint16_t*>(weights)[i]);
  }
  return 0.0f;
}

// Codes of four columns in the low two bits of each byte of a dword.
constexpr std::uint32_t kCodeMask = 0x03030303u;

}  // namespace

TernaryMatrix::TernaryMatrix(std::size_t out_features, std::size_t in_features)
    : rows_(out_features), columns_(in_features), panels_(0), blocks_(0) {
  if (rows_ == 0 || columns_ == 0 || columns_ > kMaxInFeatures || rows_ > kMaxInFeatures) {
    throw ValidationError("[ternary_matrix] shape [" + std::to_string(rows_) + ", " +
                          std::to_string(columns_) + "] must be within 1.." +
                          std::to_string(kMaxInFeatures));
  }
  panels_ = (rows_ + kPanelRows - 1) / kPanelRows;
  blocks_ = (columns_ + kBlockColumns - 1) / kBlockColumns;
  packed_ = Buffer(panels_ * blocks_ * kBlockBytes, "ternary weights");
  row_scale_ = Buffer(panels_ * kPanelRows * sizeof(float), "row scales");
}

void TernaryMatrix::check_rows(const char* op, std::size_t row_begin, std::size_t rows) const {
  if (row_begin > rows_ || rows > rows_ - row_begin) {
    throw ValidationError(std::string("[") + op + "] rows " + std::to_string(row_begin) + "..+" +
                          std::to_string(rows) + " do not fit a matrix of " +
                          std::to_string(rows_) + " rows");
  }
}

void TernaryMatrix::set_scale(std::size_t row_begin, std::size_t rows, float scale) {
  for (std::size_t i = 0; i < rows; ++i) row_scale_.as<float>()[row_begin + i] = scale;
  rows_packed_ += rows;
}

// Packs one row from bytes that hold each column's code at bits shift+1..shift, 16 columns at a
// time: four dwords of codes become the row's dword of the block.
void TernaryMatrix::pack_row(std::size_t row, const std::uint8_t* codes, unsigned shift) {
  std::uint8_t* out = packed_.as<std::uint8_t>() + ternary2_byte(row, 0, blocks_);
  std::uint32_t invalid = 0;
  for (std::size_t block = 0; block < blocks_; ++block, out += kBlockBytes) {
    std::uint32_t words[4];
    const std::size_t left = columns_ - block * kBlockColumns;
    if (left >= kBlockColumns) {
      std::memcpy(words, codes + block * kBlockColumns, sizeof words);
      for (std::uint32_t& word : words) word = (word >> shift) & kCodeMask;
    } else {
      std::uint8_t tail[kBlockColumns];
      for (std::size_t k = 0; k < kBlockColumns; ++k) {
        tail[k] = k < left ? (codes[block * kBlockColumns + k] >> shift) & 3 : 1;
      }
      std::memcpy(words, tail, sizeof words);
    }
    std::uint32_t dword = 0;
    for (unsigned plane = 0; plane < 4; ++plane) {
      invalid |= words[plane] & (words[plane] >> 1) & 0x01010101u;
      dword |= words[plane] << (2 * plane);
    }
    std::memcpy(out, &dword, sizeof dword);
  }
  if (invalid == 0) return;
  for (std::size_t k = 0; k < columns_; ++k) {
    if (((codes[k] >> shift) & 3) == 3) {
      throw QuantizationError("[pack] code 3 at " + at(row, k) +
                              ": a ternary weight is stored as 0, 1 or 2; the file is damaged or "
                              "holds another format");
    }
  }
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
      row_total += std::fabs(load_weight(weights, dtype, r * columns_ + k));
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
      const float value = load_weight(weights, dtype, r * columns_ + k) * inverse;
      // Round half to even, then clamp: only the open intervals beyond +-0.5 leave zero.
      codes[k] = value > 0.5f ? 2 : value < -0.5f ? 0 : 1;
    }
    pack_row(row_begin + r, codes.data(), 0);
  }
  set_scale(row_begin, rows, mean);
  return mean;
}

void TernaryMatrix::unpack_row(std::size_t row, std::int8_t* values) const {
  for (std::size_t k = 0; k < columns_; ++k) {
    const std::uint8_t byte = packed()[ternary2_byte(row, k, blocks_)];
    values[k] = static_cast<std::int8_t>(((byte >> ternary2_shift(k)) & 3) - 1);
  }
}

}  // namespace ryz
