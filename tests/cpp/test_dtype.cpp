// Every half and every bfloat16 against arithmetic on doubles, and every place where rounding to
// half could go wrong.
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>

#include "base/dtype.h"
#include "check.h"

namespace {

using ryz::bf16_to_f32;
using ryz::f16_to_f32;
using ryz::f32_to_f16;

std::uint32_t bits_of(float value) {
  std::uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  return bits;
}

float of_bits(std::uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

bool same(float a, float b) { return bits_of(a) == bits_of(b); }

// The definition of binary16: 5 bits of exponent with bias 15, 10 of mantissa.
double half_value(unsigned half) {
  const int exponent = static_cast<int>((half >> 10) & 31u);
  const int mantissa = static_cast<int>(half & 1023u);
  const double magnitude = exponent == 0    ? std::ldexp(mantissa, -24)
                           : exponent == 31 ? std::numeric_limits<double>::infinity()
                                            : std::ldexp(1024 + mantissa, exponent - 25);
  return (half & 0x8000u) != 0 ? -magnitude : magnitude;
}

bool is_nan_half(unsigned half) { return (half & 0x7fffu) > 0x7c00u; }

void every_half() {
  for (unsigned half = 0; half < 65536; ++half) {
    const auto bits = static_cast<std::uint16_t>(half);
    const float value = f16_to_f32(bits);
    if (is_nan_half(half)) {
      RYZ_CHECK(std::isnan(value));
      RYZ_CHECK(is_nan_half(f32_to_f16(value)));
      RYZ_CHECK(std::signbit(value) == (half >= 0x8000u));
    } else {
      RYZ_CHECK(same(value, static_cast<float>(half_value(half))));
      RYZ_CHECK(f32_to_f16(value) == half);
    }
  }
}

// Between two neighbouring halves: their midpoint goes to the even one, a float just beside it to
// the nearer one. The midpoint of the largest half and the next power of two overflows.
void every_midpoint() {
  for (unsigned low = 0; low < 0x7c00u; ++low) {
    const unsigned high = low + 1;
    const double above = high == 0x7c00u ? 65536.0 : half_value(high);
    const auto middle = static_cast<float>((half_value(low) + above) / 2);
    const float below = std::nextafter(middle, 0.0f);
    const float beyond = std::nextafter(middle, std::numeric_limits<float>::infinity());
    const unsigned even = low % 2 == 0 ? low : high;
    for (unsigned sign : {0u, 0x8000u}) {
      const float s = sign == 0 ? 1.0f : -1.0f;
      RYZ_CHECK(f32_to_f16(s * middle) == (even | sign));
      RYZ_CHECK(f32_to_f16(s * below) == (low | sign));
      RYZ_CHECK(f32_to_f16(s * beyond) == (high | sign));
    }
  }
}

void extremes() {
  const float infinity = std::numeric_limits<float>::infinity();
  RYZ_CHECK(f32_to_f16(infinity) == 0x7c00u);
  RYZ_CHECK(f32_to_f16(-infinity) == 0xfc00u);
  RYZ_CHECK(f32_to_f16(std::numeric_limits<float>::max()) == 0x7c00u);
  RYZ_CHECK(f32_to_f16(std::numeric_limits<float>::denorm_min()) == 0);
  RYZ_CHECK(f32_to_f16(-0.0f) == 0x8000u);
  // A NaN whose payload lies only in bits that a half does not have must stay a NaN.
  for (std::uint32_t nan : {0x7f800001u, 0x7fc00000u, 0x7fffffffu, 0xff800001u, 0xffc01234u}) {
    const unsigned half = f32_to_f16(of_bits(nan));
    RYZ_CHECK(is_nan_half(half));
    RYZ_CHECK((half >= 0x8000u) == (nan >= 0x80000000u));
  }
}

void every_bf16() {
  for (unsigned bits = 0; bits < 65536; ++bits) {
    const float value = bf16_to_f32(static_cast<std::uint16_t>(bits));
    RYZ_CHECK(bits_of(value) == bits << 16);
  }
}

}  // namespace

int main() {
  return run_tests([] {
    every_half();
    every_midpoint();
    extremes();
    every_bf16();
  });
}
