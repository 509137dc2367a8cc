// Philox4x32-10, the counter-based generator of Salmon, Moraes, Dror and Shaw, "Parallel random
// numbers: as easy as 1, 2, 3" (SC 2011). A draw is a pure function of key and counter, so neither
// batching nor replaying can change it.
#pragma once

#include <array>
#include <cstdint>

namespace ryz {

using PhiloxCounter = std::array<std::uint32_t, 4>;
using PhiloxKey = std::array<std::uint32_t, 2>;

constexpr PhiloxCounter philox4x32(PhiloxCounter counter, PhiloxKey key) {
  constexpr std::uint64_t kMultiplier0 = 0xD2511F53;
  constexpr std::uint64_t kMultiplier1 = 0xCD9E8D57;
  constexpr std::uint32_t kGoldenRatio = 0x9E3779B9;
  constexpr std::uint32_t kSqrtThree = 0xBB67AE85;  // sqrt(3) - 1, as kGoldenRatio: 32 bits of it
  constexpr int kRounds = 10;
  for (int round = 0; round < kRounds; ++round) {
    const std::uint64_t product0 = kMultiplier0 * counter[0];
    const std::uint64_t product1 = kMultiplier1 * counter[2];
    const auto high0 = static_cast<std::uint32_t>(product0 >> 32);
    const auto high1 = static_cast<std::uint32_t>(product1 >> 32);
    counter = {high1 ^ counter[1] ^ key[0], static_cast<std::uint32_t>(product1),
               high0 ^ counter[3] ^ key[1], static_cast<std::uint32_t>(product0)};
    key = {key[0] + kGoldenRatio, key[1] + kSqrtThree};
  }
  return counter;
}

// Known answers of the authors' Random123 library.
static_assert(philox4x32({}, {}) == PhiloxCounter{0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8});
static_assert(philox4x32({0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344},
                         {0xA4093822, 0x299F31D0}) ==
              PhiloxCounter{0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1});

// What a number is drawn for. Each purpose has numbers of its own, so that switching a filter on
// leaves the others' draws as they were.
enum class Draw : std::uint32_t { kToken, kXtc };

// The random numbers of one position.
class Draws {
 public:
  constexpr Draws(std::uint64_t seed, std::uint64_t position) : seed_(seed), position_(position) {}

  // Uniform in [0, 1) with 53 random bits.
  constexpr double uniform(Draw purpose) const {
    const PhiloxCounter words =
        philox4x32({low(position_), high(position_), static_cast<std::uint32_t>(purpose), 0},
                   {low(seed_), high(seed_)});
    const std::uint64_t bits = (static_cast<std::uint64_t>(words[1]) << 32) | words[0];
    return static_cast<double>(bits >> 11) * 0x1p-53;
  }

 private:
  static constexpr std::uint32_t low(std::uint64_t value) {
    return static_cast<std::uint32_t>(value);
  }
  static constexpr std::uint32_t high(std::uint64_t value) {
    return static_cast<std::uint32_t>(value >> 32);
  }

  std::uint64_t seed_;
  std::uint64_t position_;
};

}  // namespace ryz
