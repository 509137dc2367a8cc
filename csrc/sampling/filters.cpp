#include "sampling/filters.h"

#include <algorithm>
#include <cmath>
#include <cstddef>

#include "base/error.h"

namespace ryz {
namespace {

std::size_t min_keep(const FilterParams& params) {
  return static_cast<std::size_t>(params.min_keep);
}

void temperature(const FilterParams& params, const Draws&, Order& order) {
  if (params.dynatemp_range == 0.0f) {
    if (params.temperature != 1.0f) order.set_temperature(params.temperature);
    return;
  }
  const std::size_t count = order.count_finite();
  if (count < 2) return;
  const double share = order.entropy() / std::log(static_cast<double>(count));
  const double low = std::max(0.0f, params.temperature - params.dynatemp_range);
  const double high = static_cast<double>(params.temperature + params.dynatemp_range);
  const double exponent = static_cast<double>(params.dynatemp_exponent);
  // Rounding can take the share a little beyond its range.
  const double raised = std::pow(std::clamp(share, 0.0, 1.0), exponent);
  order.set_temperature(static_cast<float>(low + (high - low) * raised));
}

void top_n_sigma(const FilterParams& params, const Draws&, Order& order) {
  const double deviation = order.spread().deviation;
  const double floor = static_cast<double>(order[0].logit) - params.top_n_sigma * deviation;
  order.keep_first(std::max<std::size_t>(order.count_from(static_cast<float>(floor)), 1));
}

void top_k(const FilterParams& params, const Draws&, Order& order) {
  order.keep_first(static_cast<std::size_t>(params.top_k));
}

void typical_p(const FilterParams& params, const Draws&, Order& order) {
  order.keep_nearest(order.typical_logit(), params.typical_p, min_keep(params));
}

void top_p(const FilterParams& params, const Draws&, Order& order) {
  order.keep_first(std::max(order.count_to(params.top_p), min_keep(params)));
}

void min_p(const FilterParams& params, const Draws&, Order& order) {
  order.keep_first(std::max(order.count_from(order.floor_of_top(params.min_p)), min_keep(params)));
}

void xtc(const FilterParams& params, const Draws& draws, Order& order) {
  if (draws.uniform(Draw::kXtc) >= params.xtc_probability) return;
  const std::size_t likely = order.count_from(order.floor_of_total(params.xtc_threshold));
  if (likely < 2 || order.size() - (likely - 1) < min_keep(params)) return;
  order.drop_first(likely - 1);
}

constexpr Filter kFilters[] = {
    {"temperature",
     [](const FilterParams& p) { return p.temperature != 1.0f || p.dynatemp_range > 0.0f; },
     temperature},
    {"top_n_sigma", [](const FilterParams& p) { return p.top_n_sigma > 0.0; }, top_n_sigma},
    {"top_k", [](const FilterParams& p) { return p.top_k > 0; }, top_k},
    {"typical_p", [](const FilterParams& p) { return p.typical_p < 1.0; }, typical_p},
    {"top_p", [](const FilterParams& p) { return p.top_p < 1.0; }, top_p},
    {"min_p", [](const FilterParams& p) { return p.min_p > 0.0; }, min_p},
    {"xtc", [](const FilterParams& p) { return p.xtc_probability > 0.0; }, xtc},
};

}  // namespace

const Filter& find_filter(const std::string& name) {
  for (const Filter& filter : kFilters) {
    if (name == filter.name) return filter;
  }
  std::string known;
  for (const Filter& filter : kFilters) known += std::string(" ") + filter.name;
  throw ValidationError("[sampler] there is no filter '" + name + "'; expected one of" + known);
}

std::int32_t draw_mirostat(Order& order, const Draws& draws, double tau, double eta, double& mu) {
  const std::size_t expected = order.count_from(order.floor_of_total(std::exp2(-mu)));
  order.keep_first(std::max<std::size_t>(expected, 1));
  const Candidate drawn = order.draw(draws.uniform(Draw::kToken));
  const double surprise = -std::log2(order.mass_of(drawn.logit) / order.total());
  mu -= eta * (surprise - tau);
  return drawn.id;
}

}  // namespace ryz
