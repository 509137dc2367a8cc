// Storage types of dense weights and KV pages, and their scalar conversions.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>

namespace ryz {

enum class DType : std::uint8_t { kF32, kF16, kBF16 };

constexpr std::size_t size_of(DType dtype) { return dtype == DType::kF32 ? 4 : 2; }

inline float bf16_to_f32(std::uint16_t bits) {
  const std::uint32_t wide = static_cast<std::uint32_t>(bits) << 16;
  float value;
  std::memcpy(&value, &wide, sizeof value);
  return value;
}

inline float f16_to_f32(std::uint16_t bits) {
  const std::uint32_t sign = static_cast<std::uint32_t>(bits & 0x8000u) << 16;
  const std::uint32_t exponent = (bits >> 10) & 0x1fu;
  const std::uint32_t mantissa = bits & 0x3ffu;
  std::uint32_t wide;
  if (exponent == 0x1f) {
    wide = sign | 0x7f800000u | (mantissa << 13);
  } else if (exponent != 0) {
    wide = sign | ((exponent + 112) << 23) | (mantissa << 13);
  } else {
    // Subnormal: the mantissa counts units of 2^-24, exact in float.
    const float magnitude = static_cast<float>(mantissa) * 0x1p-24f;
    std::memcpy(&wide, &magnitude, sizeof wide);
    wide |= sign;
  }
  float value;
  std::memcpy(&value, &wide, sizeof value);
  return value;
}

// Rounds to nearest even, as VCVTPS2PH does; overflow becomes infinity, NaN stays NaN.
inline std::uint16_t f32_to_f16(float value) {
  std::uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  const auto sign = static_cast<std::uint16_t>((bits >> 16) & 0x8000u);
  bits &= 0x7fffffffu;
  if (bits > 0x7f800000u) {  // NaN: keep the payload's top bits, made quiet
    return static_cast<std::uint16_t>(sign | 0x7e00u | ((bits >> 13) & 0x1ffu));
  }
  if (bits >= 0x477ff000u) return static_cast<std::uint16_t>(sign | 0x7c00u);
  if (bits < 0x38800000u) {
    // Below the smallest normal half: adding 0.5 leaves round(value * 2^24) in the low mantissa.
    float magnitude;
    std::memcpy(&magnitude, &bits, sizeof magnitude);
    magnitude += 0.5f;
    std::uint32_t rounded;
    std::memcpy(&rounded, &magnitude, sizeof rounded);
    return static_cast<std::uint16_t>(sign | (rounded - 0x3f000000u));
  }
  const std::uint32_t odd = (bits >> 13) & 1u;
  return static_cast<std::uint16_t>(sign | ((bits + 0xfffu + odd - 0x38000000u) >> 13));
}

// Element `i` of an array of `dtype`; no alignment needed.
inline float element_to_f32(const void* data, DType dtype, std::size_t i) {
  const char* source = static_cast<const char*>(data) + i * size_of(dtype);
  if (dtype == DType::kF32) {
    float value;
    std::memcpy(&value, source, sizeof value);
    return value;
  }
  std::uint16_t bits;
  std::memcpy(&bits, source, sizeof bits);
  return dtype == DType::kF16 ? f16_to_f32(bits) : bf16_to_f32(bits);
}

}  // namespace ryz
