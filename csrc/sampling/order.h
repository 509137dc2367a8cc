// The candidates of one draw, in descending order of logit, ties by ascending id.
//
// Every filter of the chain keeps a run of that order: top-k, top-p, min-p and top-n-sigma its
// beginning, XTC its end, typical what lies near a logit. So the candidates are two places in the
// order, and a filter moves them. The order itself is made only where it is looked at.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "sampling/ladder.h"
#include "sampling/logits.h"

namespace ryz {

struct Spread {
  double mean;
  double deviation;  // of the population
};

class Order {
 public:
  // All tokens of a row, which must outlive the calls below, at temperature 1.
  void start(const Logits& row);

  std::size_t size() const { return end_ - begin_; }

  // The candidate at a place, 0 the most likely.
  Candidate operator[](std::size_t place) { return with_id(at(begin_ + place)); }

  // A candidate's mass is exp((logit - reference) / temperature), where the reference is a logit
  // near the highest.
  void set_temperature(float temperature);

  // The mass of all candidates.
  double total() { return candidates().mass(); }

  // The mass of one candidate. Precondition: logit is a candidate's.
  double mass_of(float logit) const;

  // The lowest logit whose mass is at least that share of all, or of the most likely candidate.
  float floor_of_total(double share);
  float floor_of_top(double share);

  // How many candidates it takes to reach that share of the mass of all.
  std::size_t count_to(double share);

  // How many candidates have a logit >= floor, or one above -inf.
  std::size_t count_from(float floor);
  std::size_t count_finite();

  // The candidate where the cumulative mass exceeds that share, in [0, 1), of all.
  Candidate draw(double uniform);

  void keep_first(std::size_t count);
  void drop_first(std::size_t count);

  // Keeps the candidates nearest to `centre` in logit: the fewest that reach that share of the mass
  // of all, and at least `min_keep`. Equally near ones stay or go together.
  void keep_nearest(float centre, double share, std::size_t min_keep);

  // The logit of a candidate whose surprise is the entropy.
  float typical_logit();

  // Of the candidates' distribution, in nats.
  double entropy();

  // Of the candidates' finite logits.
  Spread spread();

 private:
  // Candidates that follow each other, as what comes before them and what they end.
  struct Run {
    Prefix begin;
    Prefix end;
    double mass() const { return end.mass - begin.mass; }
    std::size_t size() const { return end.size() - begin.size(); }
  };
  // What keep_nearest() keeps at least and at most.
  struct Nearest {
    Run sure;
    Run possible;
  };

  Run candidates();
  // Puts the candidates that are possible and not sure, the undecided, into `gathered_`.
  Nearest find_undecided(float centre, double target, std::size_t least);

  // Appends the candidates of the ladder's rungs [begin, end) to `gathered_`, by ascending id.
  void gather_candidates(std::size_t begin, std::size_t end);

  void take_all(const Logits& row);
  // Makes a few candidates of a row all of a shorter one.
  void shorten_row();
  Candidate with_id(Candidate candidate) const;

  // Places below are those of the whole order, ids places in the row.
  Candidate at(std::size_t place);
  double mass_of_first(std::size_t count);
  std::size_t find(double target, Crossing crossing);
  const std::vector<double>& sorted_mass();
  float top_logit() { return begin_ == 0 ? row_max_ : at(begin_).logit; }
  void forget_masses();
  void sort_head();
  void weigh_row();
  Ladder& ladder();
  std::span<const float> logits();
  std::span<const float> weights(float inv_temperature);

  const Logits* row_ = nullptr;  // null where `sorted_` has all that remains
  Logits short_row_;
  std::vector<float> short_values_;
  std::vector<std::int32_t> ids_;  // of the shorter row's tokens; empty where there is none
  std::size_t begin_ = 0;
  std::size_t end_ = 0;
  float row_max_ = 0.0f;
  float reference_ = 0.0f;
  float temperature_ = 1.0f;
  float inv_temperature_ = 1.0f;

  std::vector<Candidate> sorted_;  // the beginning of the order
  bool is_head_sorted_ = false;
  std::vector<double> sorted_mass_;  // [n] is that of the first n; empty where not yet known
  std::vector<float> sorted_values_;
  std::vector<float> sorted_weights_;

  std::vector<float> row_weights_;  // of every token
  bool is_row_weighed_ = false;
  double row_total_ = 0.0;
  Ladder ladder_;
  bool is_ladder_built_ = false;

  std::vector<float> candidate_weights_;  // as row_weights_, 0 for what is no candidate

  std::vector<Candidate> gathered_;
  std::vector<float> undecided_weights_;
  std::vector<float> distances_;  // negative, of the undecided
  Ladder nearest_;                // of these
};

}  // namespace ryz
