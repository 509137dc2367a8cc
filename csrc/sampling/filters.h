// The filters of the chain by name. Each narrows the candidates, or changes their temperature.
#pragma once

#include <cstdint>
#include <string>

#include "sampling/order.h"
#include "sampling/philox.h"

namespace ryz {

struct FilterParams {
  float temperature = 1.0f;
  float dynatemp_range = 0.0f;     // 0: off
  float dynatemp_exponent = 1.0f;  // of the share of the greatest entropy
  double top_n_sigma = 0.0;        // 0: off
  std::int64_t top_k = 0;          // 0: off
  double typical_p = 1.0;          // 1: off
  double top_p = 1.0;              // 1: off
  double min_p = 0.0;              // 0: off
  double xtc_probability = 0.0;    // 0: off
  double xtc_threshold = 0.1;
  std::int64_t min_keep = 1;  // candidates that top-p, min-p, typical and XTC leave
};

struct Filter {
  const char* name;
  bool (*is_active)(const FilterParams& params);
  void (*apply)(const FilterParams& params, const Draws& draws, Order& order);
};

// Throws ValidationError where there is none of that name.
const Filter& find_filter(const std::string& name);

// Mirostat v2 (arXiv:2007.14966, its Algorithm 2): drops candidates whose surprise, -log2 p, is
// above mu, draws, and moves mu so that the surprise drawn comes near tau.
std::int32_t draw_mirostat(Order& order, const Draws& draws, double tau, double eta, double& mu);

}  // namespace ryz
