// One thread's part in the linears of a step: prepares input rows in the form that a kind of
// matrix takes, and multiplies. A kind is an alternative of Matrix, and has a `prepare` and a
// `multiply` of its own here.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "cpu/thread_pool.h"
#include "model/step.h"

namespace ryz {

enum class Output { kAssign, kAdd };

class LinearWorker {
 public:
  // Rows as quantize makes them: what ternary matrices take.
  struct QuantizedRows {
    std::int8_t* q;
    float* scale;
    std::int32_t* sum;
  };

  // Rows as quantize_blocks makes them: what grouped matrices take.
  struct BlockRows {
    std::int8_t* q;
    ActivationBlock* blocks;
    std::uint8_t* tables;  // of one token, for kernels that read them
  };

  LinearWorker(const Step& step, ThreadPool::Context& ctx);

  // out[T, rows of all linears] = or += linears(rms_norm(input, gain)). An empty gain leaves the
  // input as it is. Starts and ends with every thread past a barrier.
  void project(const float* input, const std::vector<float>& gain, std::span<const Linear> linears,
               Output output, float* out, std::size_t out_stride);
  // The same for one linear of the input f(gate) * up, from rows [T, gate then up].
  void project_gated(const float* gate_up, const std::vector<float>& gain, const Linear& linear,
                     Output output, float* out, std::size_t out_stride);

  // This thread's rows of a linear's input: the gain's norm, then the linear's own, either of which
  // may be absent.
  void prepare(const float* input, const std::vector<float>& gain, const Linear& linear);
  // Units [first, last) of a linear (Linear::units) times the rows prepared before.
  void multiply(const Linear& linear, std::size_t first, std::size_t last, Output output,
                float* out, std::size_t out_stride);
  const QuantizedRows& quantized() const { return quantized_; }
  // The argument that quantises row t, `row`, with the linear's norm where it has one, else with
  // the gain's.
  QuantizeArgs quantize_args(const float* row, std::size_t t, const std::vector<float>& gain,
                             const Linear& linear, std::size_t mean_count) const;

 private:
  void prepare(const TernaryMatrix& matrix, const float* input, const std::vector<float>& gain,
               const Linear& linear);
  void prepare(const DenseMatrix& matrix, const float* input, const std::vector<float>& gain,
               const Linear& linear);
  void prepare(const GroupedMatrix& matrix, const float* input, const std::vector<float>& gain,
               const Linear& linear);
  void multiply(const TernaryMatrix& matrix, const Linear& linear, std::size_t first,
                std::size_t last, const float* residual, float* out, std::size_t out_stride);
  void multiply(const DenseMatrix& matrix, const Linear& linear, std::size_t first,
                std::size_t last, const float* residual, float* out, std::size_t out_stride);
  void multiply(const GroupedMatrix& matrix, const Linear& linear, std::size_t first,
                std::size_t last, const float* residual, float* out, std::size_t out_stride);
  const float* normed_row(const float* row, std::size_t t, const std::vector<float>& gain,
                          const Linear& linear);
  void gate(const float* gate_up, const std::vector<float>& gain, const Linear& linear);
  // Whether the products of this step's token are looked up in tables.
  bool looks_up(const Linear& linear) const;
  void share_rows();

  ThreadPool::Context& ctx_;
  const DecoderConfig& config_;
  const KernelTable& kernels_;
  const std::size_t tokens_;
  // Rows this thread prepares (norms, gates, quantises): a share of them in shared buffers or, when
  // there are fewer rows than threads, all of them in buffers of its own, which costs less than the
  // barrier that sharing would take.
  const bool replicates_;
  std::size_t first_row_ = 0;
  std::size_t last_row_ = 0;
  float* normed_;
  float* gated_;
  QuantizedRows quantized_;
  BlockRows block_rows_;
  const float* rows_ = nullptr;  // [T, in-features], what dense matrices take
};

}  // namespace ryz
