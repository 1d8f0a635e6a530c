// The LSTM layer of lstm.py as XLA FFI calls for the CPU: forward and backward of one direction,
// and both directions forward, for predictions.
//
// Why it is fast: weights are packed once per call, not at every time step; the gates are computed
// in registers from the results of the matrix product; the gate gradients are used for all their
// products while they are still in the cache and never go to memory; rows whose clip has ended are
// skipped. A direction has one thread: the devices of data parallelism share the cores.
//
// Arrays are row-major and time-major: [T, B, ...]. Gates lie in the order i, f, o, g, and
// sigma(z) = tanh(z/2)/2 + 1/2, so only t, a tanh, is stored of a gate.

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <cstring>
#include <future>
#include <memory>
#include <vector>

#include "xla/ffi/api/ffi.h"

namespace {

namespace ffi = xla::ffi;
using Input = ffi::Buffer<ffi::F32>;
using Lengths = ffi::Buffer<ffi::S32>;
using Output = ffi::ResultBuffer<ffi::F32>;

// A tile of the products is ROWS rows by 4 vectors: sums that fit into the registers.
#if defined(__AVX512F__)
constexpr int LANES = 16, ROWS = 6;
#elif defined(__AVX__)
constexpr int LANES = 8, ROWS = 2;
#else
constexpr int LANES = 4, ROWS = 2;
#endif
constexpr int64_t PANEL = 4 * LANES;  // columns of a tile
constexpr int64_t CHUNK = 96;         // rows [t, b] whose gate gradients stay in the cache

typedef float Vector __attribute__((vector_size(LANES * sizeof(float)), may_alias));
typedef Vector Tile[ROWS][4];

inline Vector load(const float* from, int64_t count = LANES) {
  Vector v{};
  if (count >= LANES)
    std::memcpy(&v, from, sizeof v);
  else
    for (int64_t lane = 0; lane < count; ++lane) v[lane] = from[lane];
  return v;
}

inline void store(float* to, Vector v, int64_t count = LANES) {
  if (count >= LANES)
    std::memcpy(to, &v, sizeof v);
  else
    for (int64_t lane = 0; lane < count; ++lane) to[lane] = v[lane];
}

// A rational approximation, within a few units in the last place; the coefficients are Eigen's.
inline Vector tanh(Vector x) {
  const Vector limit = Vector{} + 7.90531110763549805f;
  x = x > limit ? limit : x;
  x = x < -limit ? -limit : x;
  const Vector s = x * x;
  Vector p = s * -2.76076847742355e-16f + 2.00018790482477e-13f;
  p = p * s - 8.60467152213735e-11f;
  p = p * s + 5.12229709037114e-08f;
  p = p * s + 1.48572235717979e-05f;
  p = p * s + 6.37261928875436e-04f;
  p = p * s + 4.89352455891786e-03f;
  Vector q = s * 1.19825839466702e-06f + 1.18534705686654e-04f;
  q = q * s + 2.26843463243900e-03f;
  q = q * s + 4.89352518554385e-03f;
  return x * p / q;
}

inline Vector sigmoid(Vector t) { return t * 0.5f + 0.5f; }

// Memory that the thread keeps for its next call, because fresh pages are slow.
float* scratch(int which, int64_t floats) {
  thread_local std::vector<float> kept[8];
  std::vector<float>& memory = kept[which];
  if (static_cast<int64_t>(memory.size()) < floats + LANES) memory.resize(floats + LANES);
  const auto address = reinterpret_cast<uintptr_t>(memory.data());
  return memory.data() + (-address % sizeof(Vector)) / sizeof(float);
}

// sum[r][v] += Σ_k a(r, k) panel[k, v], for a packed panel [depth, 4 vectors].
template <int rows, typename A>
inline void multiply_rows(A a, const float* panel, int64_t depth, Tile& sum) {
  Vector s[rows][4];
  for (int r = 0; r < rows; ++r)
    for (int v = 0; v < 4; ++v) s[r][v] = sum[r][v];
  for (int64_t k = 0; k < depth; ++k, panel += PANEL) {
#pragma GCC unroll 8
    for (int r = 0; r < rows; ++r) {
      const float x = a(r, k);
#pragma GCC unroll 4
      for (int v = 0; v < 4; ++v)
        s[r][v] += x * *reinterpret_cast<const Vector*>(panel + v * LANES);
    }
  }
  for (int r = 0; r < rows; ++r)
    for (int v = 0; v < 4; ++v) sum[r][v] = s[r][v];
}

template <typename A>
inline void multiply(int rows, A a, const float* panel, int64_t depth, Tile& sum) {
  switch (rows) {
    case 1: return multiply_rows<1>(a, panel, depth, sum);
    case 2: return multiply_rows<std::min(2, ROWS)>(a, panel, depth, sum);
    case 3: return multiply_rows<std::min(3, ROWS)>(a, panel, depth, sum);
    case 4: return multiply_rows<std::min(4, ROWS)>(a, panel, depth, sum);
    case 5: return multiply_rows<std::min(5, ROWS)>(a, panel, depth, sum);
    case 6: return multiply_rows<std::min(6, ROWS)>(a, panel, depth, sum);
  }
}

struct Layer {
  int64_t time, batch, features, units;
  const int32_t* length;
  bool reverse;

  int64_t gates() const { return 4 * units; }
  // The place in time of a step in the direction of the walk; -1 before the first.
  int64_t place(int64_t step) const { return step < 0 ? -1 : reverse ? time - 1 - step : step; }
  bool inside(int64_t now, int64_t row) const { return now < length[row]; }
  bool any_inside(int64_t now, int64_t row, int rows) const {
    return std::any_of(length + row, length + row + rows, [now](int32_t n) { return now < n; });
  }
  // The same for rows [t, b] of all times.
  bool any_of_all(int64_t row, int rows) const {
    for (int r = 0; r < rows; ++r)
      if (inside((row + r) / batch, (row + r) % batch)) return true;
    return false;
  }
  int64_t steps_a_chunk() const { return std::max<int64_t>(1, CHUNK / std::max<int64_t>(1, batch)); }
};

int64_t panels(int64_t columns) { return (columns + PANEL - 1) / PANEL; }

// A kernel [depth, 4 units] as panels [units / LANES, depth, 4 gates, LANES]; the sigmoid gates
// halved. Lanes past the last unit are not set: their sums are never read.
void pack_gates(const float* kernel, int64_t depth, int64_t units, float* to) {
  for (int64_t unit = 0; unit < units; unit += LANES)
    for (int64_t k = 0; k < depth; ++k)
      for (int64_t gate = 0; gate < 4; ++gate, to += LANES) {
        const int64_t count = std::min<int64_t>(LANES, units - unit);
        store(to, load(kernel + (k * 4 + gate) * units + unit, count) * (gate < 3 ? 0.5f : 1.0f));
      }
}

// A kernel [rows, depth] transposed, as panels [rows / PANEL, depth, PANEL].
void pack_transposed(const float* kernel, int64_t rows, int64_t depth, float* to) {
  for (int64_t first = 0; first < rows; first += PANEL)
    for (int64_t k = 0; k < depth; ++k, to += PANEL)
      for (int64_t row = 0; row < std::min(PANEL, rows - first); ++row)
        to[row] = kernel[(first + row) * depth + k];
}

// t = x W_x + b for the rows of a chunk, before the walk makes gates of it.
void project(const Layer& layer, int64_t first_step, int64_t steps, const float* x,
             const float* packed, const float* bias, float* t) {
  const int64_t units = layer.units;
  // A tile may hold rows of several times; otherwise one clip would give a single row.
  const int64_t start =
      std::min(layer.place(first_step), layer.place(first_step + steps - 1)) * layer.batch;
  const int64_t end = start + steps * layer.batch;
  for (int64_t unit = 0; unit < units; unit += LANES) {
    const float* panel = packed + unit * 4 * layer.features;
    const int64_t count = std::min<int64_t>(LANES, units - unit);
    Vector b[4];
    for (int gate = 0; gate < 4; ++gate)
      b[gate] = load(bias + gate * units + unit, count) * (gate < 3 ? 0.5f : 1.0f);
    for (int64_t row = start; row < end; row += ROWS) {
      const int rows = std::min<int64_t>(ROWS, end - row);
      if (!layer.any_of_all(row, rows)) continue;
      const float* a = x + row * layer.features;
      Tile sum;
      for (int r = 0; r < rows; ++r)
        for (int gate = 0; gate < 4; ++gate) sum[r][gate] = b[gate];
      multiply(rows, [&](int r, int64_t k) { return a[r * layer.features + k]; }, panel,
               layer.features, sum);
      for (int r = 0; r < rows; ++r)
        for (int gate = 0; gate < 4; ++gate)
          store(t + ((row + r) * 4 + gate) * units + unit, sum[r][gate], count);
    }
  }
}

// One time step of the forward walk: z in t becomes gates.
void step_forward(const Layer& layer, int64_t step, const float* packed, float* h, float* c,
                  float* t) {
  const int64_t units = layer.units, now = layer.place(step), before = layer.place(step - 1);
  for (int64_t unit = 0; unit < units; unit += LANES) {
    const float* panel = packed + unit * 4 * units;
    const int64_t count = std::min<int64_t>(LANES, units - unit);
    for (int64_t row = 0; row < layer.batch; row += ROWS) {
      const int rows = std::min<int64_t>(ROWS, layer.batch - row);
      Tile sum = {};
      if (step && layer.any_inside(now, row, rows)) {
        const float* a = h + (before * layer.batch + row) * units;
        multiply(rows, [&](int r, int64_t k) { return a[r * units + k]; }, panel, units, sum);
      }
      for (int r = 0; r < rows; ++r) {
        const int64_t state = (now * layer.batch + row + r) * units + unit;
        if (!layer.inside(now, row + r)) {
          store(h + state, Vector{}, count);
          store(c + state, Vector{}, count);
          continue;
        }
        float* gates = t + (now * layer.batch + row + r) * layer.gates() + unit;
        Vector gate[4];
        for (int n = 0; n < 4; ++n) {
          gate[n] = tanh(sum[r][n] + load(gates + n * units, count));
          store(gates + n * units, gate[n], count);
        }
        const Vector c_before =
            step ? load(c + (before * layer.batch + row + r) * units + unit, count) : Vector{};
        const Vector c_now = sigmoid(gate[1]) * c_before + sigmoid(gate[0]) * gate[3];
        store(c + state, c_now, count);
        store(h + state, sigmoid(gate[2]) * tanh(c_now), count);
      }
    }
  }
}

void forward(const Layer& layer, Input x, Input input_kernel, Input recurrent_kernel, Input bias,
             float* h, float* c, float* t) {
  const int64_t units = layer.units, width = (units + LANES - 1) / LANES * PANEL;
  float* packed_input = scratch(0, layer.features * width);
  float* packed_recurrent = scratch(1, units * width);
  pack_gates(input_kernel.typed_data(), layer.features, units, packed_input);
  pack_gates(recurrent_kernel.typed_data(), units, units, packed_recurrent);
  for (int64_t first = 0; first < layer.time; first += layer.steps_a_chunk()) {
    const int64_t steps = std::min(layer.steps_a_chunk(), layer.time - first);
    project(layer, first, steps, x.typed_data(), packed_input, bias.typed_data(), t);
    for (int64_t step = first; step < first + steps; ++step)
      step_forward(layer, step, packed_recurrent, h, c, t);
  }
}

Layer layer_of(Input x, Lengths length, Input recurrent_kernel, bool reverse) {
  const auto shape = x.dimensions();
  return {shape[0], shape[1], shape[2], recurrent_kernel.dimensions()[0], length.typed_data(),
          reverse};
}

ffi::Error Forward(Input x, Lengths length, Input input_kernel, Input recurrent_kernel, Input bias,
                   Output h, Output c, Output t, bool reverse) {
  forward(layer_of(x, length, recurrent_kernel, reverse), x, input_kernel, recurrent_kernel, bias,
          h->typed_data(), c->typed_data(), t->typed_data());
  return ffi::Error::Success();
}

// Runs both, the second on another thread if one is free before the first is done.
template <typename First, typename Second>
void run_both(ffi::ThreadPool pool, First first, Second second) {
  struct Shared {
    std::atomic<bool> taken{false};
    std::promise<void> done;
  };
  auto shared = std::make_shared<Shared>();
  // A thread that comes late finds it taken, so no call ever waits for a free thread.
  pool.Schedule([shared, &second] {
    if (shared->taken.exchange(true)) return;
    second();
    shared->done.set_value();
  });
  first();
  if (shared->taken.exchange(true))
    shared->done.get_future().wait();
  else
    second();
}

ffi::Error Predict(ffi::ThreadPool pool, Input x, Lengths length, Input input_kernel,
                   Input recurrent_kernel, Input bias, Input back_input_kernel,
                   Input back_recurrent_kernel, Input back_bias, Output h, Output back_h) {
  const auto run = [&](bool reverse, Input input, Input recurrent, Input bias, Output h) {
    const Layer layer = layer_of(x, length, recurrent, reverse);
    const int64_t states = layer.time * layer.batch * layer.units;
    forward(layer, x, input, recurrent, bias, h->typed_data(), scratch(5, states),
            scratch(6, 4 * states));
  };
  run_both(
      pool, [&] { run(false, input_kernel, recurrent_kernel, bias, h); },
      [&] { run(true, back_input_kernel, back_recurrent_kernel, back_bias, back_h); });
  return ffi::Error::Success();
}

// One time step of the backward walk: the gate gradients dz [B, 4 units] from those of the step
// after it (null at the last), the gradient dh of the output and dc, which it passes on.
void step_backward(const Layer& layer, int64_t step, const float* packed, const float* dh,
                   const float* c, const float* t, const float* dz_after, float* dc, float* dz,
                   float* d_bias) {
  const int64_t units = layer.units, now = layer.place(step), before = layer.place(step - 1);
  for (int64_t first = 0; first < units; first += PANEL) {
    const float* panel = packed + first * layer.gates();
    for (int64_t row = 0; row < layer.batch; row += ROWS) {
      const int rows = std::min<int64_t>(ROWS, layer.batch - row);
      Tile sum = {};
      if (dz_after && layer.any_inside(now, row, rows)) {
        const float* a = dz_after + row * layer.gates();
        multiply(rows, [&](int r, int64_t k) { return a[r * layer.gates() + k]; }, panel,
                 layer.gates(), sum);
      }
      for (int v = 0; v < 4 && first + v * LANES < units; ++v) {
        const int64_t unit = first + v * LANES;
        const int64_t count = std::min<int64_t>(LANES, units - unit);
        Vector total[4] = {};
        for (int r = 0; r < rows; ++r) {
          float* d_gates = dz + (row + r) * layer.gates() + unit;
          if (!layer.inside(now, row + r)) {
            for (int n = 0; n < 4; ++n) store(d_gates + n * units, Vector{}, count);
            continue;
          }
          const int64_t place = now * layer.batch + row + r;
          const float* gates = t + place * layer.gates() + unit;
          const Vector i = sigmoid(load(gates, count)), f = sigmoid(load(gates + units, count));
          const Vector o = sigmoid(load(gates + 2 * units, count));
          const Vector g = load(gates + 3 * units, count);
          const Vector tanh_c = tanh(load(c + place * units + unit, count));
          const Vector c_before =
              step ? load(c + (before * layer.batch + row + r) * units + unit, count) : Vector{};
          float* carry = dc + (row + r) * units + unit;
          const Vector d_h = sum[r][v] + load(dh + place * units + unit, count);
          const Vector d_c = load(carry, count) + d_h * o * (1.0f - tanh_c * tanh_c);
          const Vector d[4] = {d_c * g * i * (1.0f - i), d_c * c_before * f * (1.0f - f),
                               d_h * tanh_c * o * (1.0f - o), d_c * i * (1.0f - g * g)};
          for (int n = 0; n < 4; ++n) {
            store(d_gates + n * units, d[n], count);
            total[n] += d[n];
          }
          store(carry, d_c * f, count);
        }
        for (int n = 0; n < 4; ++n) {
          float* to = d_bias + n * units + unit;
          store(to, load(to, count) + total[n], count);
        }
      }
    }
  }
}

// kernel [columns, width] += Σ_k a_kᵀ b_k for rows a_k [columns] and a packed panel of b.
void add_outer(const std::vector<const float*>& a, int64_t columns, const float* panel,
               int64_t count, int64_t width, float* kernel) {
  for (int64_t column = 0; column < columns; column += ROWS) {
    const int rows = std::min<int64_t>(ROWS, columns - column);
    Tile sum;
    for (int r = 0; r < rows; ++r)
      for (int v = 0; v < 4; ++v) {
        const int64_t left = std::clamp<int64_t>(count - v * LANES, 0, LANES);
        sum[r][v] = load(kernel + (column + r) * width + v * LANES, left);
      }
    const float* const* at = a.data();
    multiply(rows, [&](int r, int64_t k) { return at[k][column + r]; }, panel, a.size(), sum);
    for (int r = 0; r < rows; ++r)
      for (int v = 0; v < 4; ++v) {
        const int64_t left = std::clamp<int64_t>(count - v * LANES, 0, LANES);
        store(kernel + (column + r) * width + v * LANES, sum[r][v], left);
      }
  }
}

ffi::Error Backward(Input dh, Input x, Input h, Input c, Input t, Lengths length,
                    Input input_kernel, Input recurrent_kernel, Output dx,
                    Output d_input_kernel, Output d_recurrent_kernel, Output d_bias, bool reverse) {
  const Layer layer = layer_of(x, length, recurrent_kernel, reverse);
  const int64_t units = layer.units, features = layer.features;
  const int64_t batch = layer.batch, gates = layer.gates(), chunk = layer.steps_a_chunk();
  const bool wants_dx = dx->element_count() > 0;
  float* packed_recurrent = scratch(0, panels(units) * PANEL * gates);
  pack_transposed(recurrent_kernel.typed_data(), units, gates, packed_recurrent);
  float* packed_input = nullptr;
  if (wants_dx) {
    packed_input = scratch(1, panels(features) * PANEL * gates);
    pack_transposed(input_kernel.typed_data(), features, gates, packed_input);
  }
  float* dz = scratch(2, (chunk + 1) * batch * gates);  // the first of them: the chunk before
  float* dc = scratch(3, batch * units);
  float* panel = scratch(4, chunk * batch * PANEL);
  std::fill_n(dc, batch * units, 0.0f);
  for (Output* sum : {&d_input_kernel, &d_recurrent_kernel, &d_bias})
    std::fill_n((*sum)->typed_data(), (*sum)->element_count(), 0.0f);
  const std::vector<float> zeros(units);
  std::vector<const float*> x_rows, h_rows, dz_rows;
  for (int64_t last = layer.time; last > 0; last -= chunk) {
    const int64_t steps = std::min(chunk, last);
    x_rows.clear(), h_rows.clear(), dz_rows.clear();
    for (int64_t n = 0; n < steps; ++n) {
      const int64_t step = last - 1 - n, now = layer.place(step), before = layer.place(step - 1);
      float* dz_now = dz + (n + 1) * batch * gates;
      step_backward(layer, step, packed_recurrent, dh.typed_data(), c.typed_data(), t.typed_data(),
                    step + 1 < layer.time ? dz_now - batch * gates : nullptr, dc, dz_now,
                    d_bias->typed_data());
      for (int64_t row = 0; row < batch; ++row) {
        if (!layer.inside(now, row)) continue;
        x_rows.push_back(x.typed_data() + (now * batch + row) * features);
        h_rows.push_back(step ? h.typed_data() + (before * batch + row) * units : zeros.data());
        dz_rows.push_back(dz_now + row * gates);
      }
    }
    const int64_t rows = dz_rows.size();
    for (int64_t column = 0; column < gates; column += PANEL) {
      const int64_t count = std::min(PANEL, gates - column);
      for (int64_t k = 0; k < rows; ++k)
        std::memcpy(panel + k * PANEL, dz_rows[k] + column, count * sizeof(float));
      add_outer(x_rows, features, panel, count, gates, d_input_kernel->typed_data() + column);
      add_outer(h_rows, units, panel, count, gates, d_recurrent_kernel->typed_data() + column);
    }
    if (wants_dx) {
      for (int64_t first = 0; first < features; first += PANEL) {
        for (int64_t n = 0; n < steps; ++n) {
          const int64_t now = layer.place(last - 1 - n);
          for (int64_t row = 0; row < batch; row += ROWS) {
            const int count = std::min<int64_t>(ROWS, batch - row);
            Tile sum = {};
            const float* a = dz + ((n + 1) * batch + row) * gates;
            if (layer.any_inside(now, row, count))
              multiply(count, [&](int r, int64_t k) { return a[r * gates + k]; },
                       packed_input + first * gates, gates, sum);
            for (int r = 0; r < count; ++r)
              for (int v = 0; v < 4 && first + v * LANES < features; ++v)
                store(dx->typed_data() + (now * batch + row + r) * features + first + v * LANES,
                      sum[r][v], std::min<int64_t>(LANES, features - first - v * LANES));
          }
        }
      }
    }
    std::memcpy(dz, dz + steps * batch * gates, batch * gates * sizeof(float));
  }
  return ffi::Error::Success();
}

}  // namespace

XLA_FFI_DEFINE_HANDLER_SYMBOL(LstmForward, Forward,
                              ffi::Ffi::Bind()
                                  .Arg<Input>()    // x [T, B, F]
                                  .Arg<Lengths>()  // length [B]
                                  .Arg<Input>()    // input kernel [F, 4 H]
                                  .Arg<Input>()    // recurrent kernel [H, 4 H]
                                  .Arg<Input>()    // bias [4 H]
                                  .Ret<Input>()    // h [T, B, H]
                                  .Ret<Input>()    // c [T, B, H]
                                  .Ret<Input>()    // t [T, B, 4 H]
                                  .Attr<bool>("reverse"));

XLA_FFI_DEFINE_HANDLER_SYMBOL(LstmPredict, Predict,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .Arg<Input>()     // x [T, B, F]
                                  .Arg<Lengths>()   // length [B]
                                  .Arg<Input>()     // ahead: input kernel [F, 4 H]
                                  .Arg<Input>()     // recurrent kernel [H, 4 H]
                                  .Arg<Input>()     // bias [4 H]
                                  .Arg<Input>()     // back: the same
                                  .Arg<Input>()
                                  .Arg<Input>()
                                  .Ret<Input>()     // h [T, B, H] ahead
                                  .Ret<Input>());   // and back

XLA_FFI_DEFINE_HANDLER_SYMBOL(LstmBackward, Backward,
                              ffi::Ffi::Bind()
                                  .Arg<Input>()    // dh [T, B, H]
                                  .Arg<Input>()    // x [T, B, F]
                                  .Arg<Input>()    // h [T, B, H]
                                  .Arg<Input>()    // c [T, B, H]
                                  .Arg<Input>()    // t [T, B, 4 H]
                                  .Arg<Lengths>()  // length [B]
                                  .Arg<Input>()    // input kernel, [0, 4 H] if no dx is wanted
                                  .Arg<Input>()    // recurrent kernel [H, 4 H]
                                  .Ret<Input>()    // gradients: of x, [0] if not wanted
                                  .Ret<Input>()    // of the input kernel
                                  .Ret<Input>()    // of the recurrent kernel
                                  .Ret<Input>()    // of the bias
                                  .Attr<bool>("reverse"));
