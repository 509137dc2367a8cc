#include "quant/grouped_matrix.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <utility>

#include "base/arena.h"
#include "base/error.h"

namespace ryz {
namespace {

// Adding it and taking it off rounds to nearest even below 2^22, in vectors on every CPU.
constexpr float kRounder = 12582912.0f;
// Times that a group's scale is fitted to its codes and the codes to the scale: two take the error
// of 4 bits from 5 % above the least to 1.5 % (docs/decisions/0012-grouped-weights.md).
constexpr int kFits = 2;

std::string at(std::size_t row, std::size_t column) {
  return "row " + std::to_string(row) + ", column " + std::to_string(column);
}

float stored_scale(float scale, DType dtype) {
  return dtype == DType::kF32 ? scale : f16_to_f32(f32_to_f16(scale));
}

// Finds a group's scale and its codes, as floats from -zero on.
class GroupFit {
 public:
  GroupFit(const GroupedFormat& format, float* levels)
      : format_(format),
        low_(static_cast<float>(-format.zero())),
        high_(static_cast<float>(format.max_code() - format.zero())),
        levels_(levels) {}

  // The largest magnitude takes the code farthest from zero; then least squares, in turn.
  float fit(const float* values) {
    const std::size_t n = format_.group;
    float extreme = 0.0f;
    for (std::size_t i = 0; i < n; ++i) {
      if (std::fabs(values[i]) > std::fabs(extreme)) extreme = values[i];
    }
    float scale = round_to(values, extreme / (high_ > -low_ ? high_ : low_));
    for (int round = 0; round < kFits; ++round) {
      float dot = 0.0f;
      float squares = 0.0f;
      for (std::size_t i = 0; i < n; ++i) {
        dot += values[i] * levels_[i];
        squares += levels_[i] * levels_[i];
      }
      if (squares == 0.0f) break;
      scale = round_to(values, dot / squares);
    }
    return scale;
  }

 private:
  float round_to(const float* values, float wanted) {
    const float scale = stored_scale(wanted, format_.scale_dtype);
    const float inverse = 1.0f / scale;
    // A scale so small that its inverse overflows stands for nothing.
    const float factor = scale == 0.0f || std::isinf(inverse) ? 0.0f : inverse;
    for (std::size_t i = 0; i < format_.group; ++i) {
      const float level = std::clamp(values[i] * factor, low_, high_);
      levels_[i] = (level + kRounder) - kRounder;
    }
    return scale;
  }

  const GroupedFormat& format_;
  float low_, high_;
  float* levels_;
};

}  // namespace

GroupedMatrix::GroupedMatrix(std::size_t out_features, std::size_t in_features,
                             GroupedFormat format)
    : rows_(out_features), columns_(in_features), panels_(0), records_(0), format_(format) {
  if (rows_ == 0 || columns_ == 0 || columns_ > kMaxInFeatures || rows_ > kMaxInFeatures) {
    throw ValidationError("[grouped_matrix] shape [" + std::to_string(rows_) + ", " +
                          std::to_string(columns_) + "] must be within 1.." +
                          std::to_string(kMaxInFeatures));
  }
  panels_ = (rows_ + kPanelRows - 1) / kPanelRows;
  records_ = (columns_ + format_.record_columns() - 1) / format_.record_columns();
  packed_ = weight_buffer(panels_ * records_ * format_.record_bytes(), "grouped weights");
}

void GroupedMatrix::check_rows(const char* op, std::size_t row_begin, std::size_t rows) const {
  if (row_begin > rows_ || rows > rows_ - row_begin) {
    throw ValidationError(std::string("[") + op + "] rows " + std::to_string(row_begin) + "..+" +
                          std::to_string(rows) + " do not fit a matrix of " +
                          std::to_string(rows_) + " rows");
  }
  if (is_stored_) {
    throw ValidationError(std::string("[") + op + "] a matrix of stored arrays is only read");
  }
}

// Where the record of a row's panel begins.
std::uint8_t* GroupedMatrix::record(std::size_t row, std::size_t index) const {
  return packed_.as<std::uint8_t>() +
         (row / kPanelRows * records_ + index) * format_.record_bytes();
}

int GroupedMatrix::code(std::size_t row, std::size_t column) const {
  const std::size_t width = format_.record_columns();
  return format_.code(record(row, column / width), row % kPanelRows, column % width);
}

// `scale_rows` are the scales or minima of a record.
void GroupedMatrix::set_scale(std::uint8_t* scale_rows, std::size_t row, std::size_t group,
                              float value) {
  const std::size_t i = group % format_.record_groups() * kPanelRows + row % kPanelRows;
  if (format_.scale_dtype == DType::kF32) {
    std::memcpy(scale_rows + i * sizeof value, &value, sizeof value);
    return;
  }
  const std::uint16_t half = f32_to_f16(value);
  std::memcpy(scale_rows + i * sizeof half, &half, sizeof half);
}

void GroupedMatrix::pack_row(std::size_t row, const std::uint8_t* codes, const float* scales,
                             const float* minima) {
  for (std::size_t group = 0; group < groups(); ++group) {
    std::uint8_t* const head = record(row, group / format_.record_groups());
    set_scale(head, row, group, scales[group]);
    if (minima != nullptr) {
      set_scale(head + format_.minima_offset(), row, group, minima[group]);
    }
  }
  const std::size_t width = format_.record_columns();
  for (std::size_t column = 0; column < columns_; column += kScaleBlock) {
    std::uint32_t words[kBlockQuads] = {};
    std::memcpy(words, codes + column, std::min(kScaleBlock, columns_ - column));
    std::uint8_t* const to = record(row, column / width);
    for (std::size_t i = 0; i < format_.parts(); ++i) {
      const CodePart part = format_.part(i);
      const std::size_t quads = part.quads_per_vector();
      const std::uint32_t mask = 0x01010101u * part.mask();
      std::uint8_t* out = to + format_.code_byte(part, row % kPanelRows, column % width);
      for (std::size_t v = 0; v < part.bits; ++v, out += kGroupBytes) {
        std::uint32_t dword = 0;
        for (std::size_t p = 0; p < quads; ++p) {
          dword |= (words[v * quads + p] >> part.shift & mask) << (p * part.bits);
        }
        std::memcpy(out, &dword, sizeof dword);
      }
    }
  }
}

void GroupedMatrix::pack_float(std::size_t row_begin, const void* weights, DType dtype,
                               std::size_t rows) {
  check_rows("pack_float", row_begin, rows);
  if (format_.has_minimum) {
    throw ValidationError("[pack_float] a matrix with minima takes codes only");
  }
  const std::size_t width = groups() * format_.group;
  std::vector<float> values(width), levels(width), scales(groups());
  std::vector<std::uint8_t> codes(width);
  const auto zero = static_cast<float>(format_.zero());
  for (std::size_t r = 0; r < rows; ++r) {
    bool is_finite = true;
    for (std::size_t k = 0; k < columns_; ++k) {
      values[k] = element_to_f32(weights, dtype, r * columns_ + k);
      is_finite &= std::fabs(values[k]) <= std::numeric_limits<float>::max();
    }
    if (!is_finite) {
      throw QuantizationError("[pack_float] row " + std::to_string(row_begin + r) +
                              " holds a NaN or an infinity; the checkpoint is damaged");
    }
    for (std::size_t g = 0; g < groups(); ++g) {
      scales[g] = GroupFit(format_, levels.data() + g * format_.group)
                      .fit(values.data() + g * format_.group);
      if (!std::isfinite(scales[g])) {
        throw QuantizationError("[pack_float] weights at " + at(row_begin + r, g * format_.group) +
                                " are too large for a float16 scale");
      }
    }
    for (std::size_t k = 0; k < columns_; ++k) {
      codes[k] = static_cast<std::uint8_t>(static_cast<int>(levels[k] + zero));
    }
    pack_row(row_begin + r, codes.data(), scales.data(), nullptr);
  }
  rows_packed_ += rows;
}

void GroupedMatrix::pack_codes(std::size_t row_begin, const std::uint8_t* codes,
                               const float* scales, const float* minima, std::size_t rows) {
  check_rows("pack_codes", row_begin, rows);
  if ((minima != nullptr) != format_.has_minimum) {
    throw ValidationError(format_.has_minimum ? "[pack_codes] this matrix needs minima"
                                              : "[pack_codes] this matrix takes no minima");
  }
  for (std::size_t r = 0; r < rows; ++r, codes += columns_) {
    for (std::size_t k = 0; k < columns_; ++k) {
      if (codes[k] > format_.max_code()) {
        throw QuantizationError("[pack_codes] code " + std::to_string(codes[k]) + " at " +
                                at(row_begin + r, k) + " does not fit " +
                                std::to_string(format_.bits) + " bits");
      }
    }
    for (const float* values : {scales, minima}) {
      if (values == nullptr) continue;
      for (std::size_t g = 0; g < groups(); ++g) {
        const float value = values[r * groups() + g];
        if (std::isfinite(value) && stored_scale(value, format_.scale_dtype) == value) continue;
        throw QuantizationError("[pack_codes] scale or minimum " + std::to_string(value) + " at " +
                                at(row_begin + r, g * format_.group) + " is not a finite " +
                                (format_.scale_dtype == DType::kF32 ? "float32" : "float16"));
      }
    }
    pack_row(row_begin + r, codes, scales + r * groups(),
             minima == nullptr ? nullptr : minima + r * groups());
  }
  rows_packed_ += rows;
}

void GroupedMatrix::adopt(std::map<std::string, Buffer> stored) {
  adopt_buffers(buffers(), std::move(stored));
  rows_packed_ = rows_;
  is_stored_ = true;
}

void GroupedMatrix::unpack_row(std::size_t row, std::uint8_t* codes, float* scales,
                               float* minima) const {
  for (std::size_t k = 0; k < columns_; ++k) codes[k] = static_cast<std::uint8_t>(code(row, k));
  for (std::size_t g = 0; g < groups(); ++g) {
    const std::uint8_t* head = record(row, g / format_.record_groups());
    const std::size_t i = g % format_.record_groups() * kPanelRows + row % kPanelRows;
    scales[g] = element_to_f32(head, format_.scale_dtype, i);
    if (format_.has_minimum) {
      minima[g] = element_to_f32(head + format_.minima_offset(), format_.scale_dtype, i);
    }
  }
}

void GroupedMatrix::dequantize_row(std::size_t row, float* values) const {
  for (std::size_t g = 0; g < groups(); ++g) {
    const std::uint8_t* head = record(row, g / format_.record_groups());
    const std::size_t i = g % format_.record_groups() * kPanelRows + row % kPanelRows;
    const float scale = element_to_f32(head, format_.scale_dtype, i);
    const float minimum =
        format_.has_minimum ? element_to_f32(head + format_.minima_offset(), format_.scale_dtype, i)
                            : 0.0f;
    const std::size_t end = std::min((g + 1) * format_.group, columns_);
    for (std::size_t k = g * format_.group; k < end; ++k) {
      values[k] = static_cast<float>(code(row, k) - format_.zero()) * scale + minimum;
    }
  }
}

}  // namespace ryz
