// Products with up to 64 rows, x [M, K] times a weight [N, K] transposed in bfloat16, with a gate, a bias or a residual
// after it (ops/epilogue.py says what they mean), and parts of the norms around it. For Hopper alone (sm_90a).
//
// So few rows take no time to multiply, and a small weight little to read: what counts is how long the memory takes to
// answer. So a block asks for all that it has room for at once, its weights before the kernel before this one has ended
// (griddepcontrol, ops/pdl.py), and there are blocks for all SMs: those of a cluster share a sum, each a piece of K.
// Each of them owns some of the rows of x, and is sent what the others have of these, into its shared memory.
//
// The tensor cores take 64 rows of the weight as the rows of their first operand and the rows of x as the columns of
// the second, so that few of these waste nothing.
//
// A norm needs no kernel of its own, as x / rms(x) * g W = (x * g) W / rms(x): who leaves x leaves x * g as well, and
// what is known of the squares of x; who multiplies next adds these up and divides (ops/stream.py, HalfNormed).

#include <type_traits>

#include "hopper.cuh"
#include "wgmma.cuh"

namespace {

struct Work {
  bf16* out;         // [M, N]
  const bf16* bias;  // as many as the weight has rows, or null
  bool adds;         // out holds a residual
  int features, k, rows;  // N, K, M
  const float* squares;   // [M, partials] of x before it was multiplied by the norm's weight; or null
  int partials;
  float eps;
  const bf16* next_norm;  // [N], or null: what the result is to be multiplied by
  bf16* scaled;           // [M, N], for that
  float* next_squares;    // [M, clusters], for the result's
  bool starts_next_early;  // the kernel after this one may start at once, not when this one has read its weights
};

constexpr int FEATURES = 64;  // rows of the weight that a cluster multiplies; gated: half of them gates
constexpr int WARPS = 4, THREADS = WARPS * 32 + 32;  // those that multiply, and one that copies

// For up to TOKENS rows of x. At least two blocks fit an SM, so that one may start while another ends. A stage is what
// a step takes: 64 columns of the weight and of x.
template <int TOKENS>
struct Layout {
  static constexpr int WEIGHT_BYTES = FEATURES * SPAN_BYTES, X_BYTES = TOKENS * SPAN_BYTES;
  static constexpr int STAGE = WEIGHT_BYTES + X_BYTES;
  // What is sent is [blocks that send][rows owned][ROW]; rows are four banks apart.
  static constexpr int ROW = FEATURES + 4;
  static constexpr int SENT_BYTES = TOKENS * ROW * 4;
  static constexpr int ROOM = MOST_SHARED / 2 - 3072 - SENT_BYTES;
  static constexpr int MOST_STAGES = ROOM / STAGE > 16 ? 16 : ROOM / STAGE;
  static_assert(MOST_STAGES >= 4, "");

  static constexpr __host__ __device__ int stages(int steps) { return steps < MOST_STAGES ? steps : MOST_STAGES; }
  static constexpr int shared_bytes(int steps) { return stages(steps) * STAGE + SENT_BYTES + 1024; }
};

// The first operand is the weight, the second x: sums [64 features, TOKENS].
DEFINE_MULTIPLY(8)
DEFINE_MULTIPLY(16)
DEFINE_MULTIPLY(32)
DEFINE_MULTIPLY(64)

// The same address in the shared memory of the cluster's block `rank`.
__device__ uint32_t address_at(uint32_t address, int rank) {
  uint32_t there;
  asm volatile("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(there) : "r"(address), "r"(rank));
  return there;
}

__device__ void store_shared(uint32_t address, float first, float second) {
  asm volatile("st.shared.v2.f32 [%0], {%1, %2};" ::"r"(address), "f"(first), "f"(second) : "memory");
}

// To a place in another block's shared memory; `barrier`, which is there too, counts the bytes.
__device__ void send(uint32_t target, uint32_t barrier, float first, float second) {
  asm volatile("st.async.shared::cluster.mbarrier::complete_tx::bytes.v2.f32 [%0], {%1, %2}, [%3];" ::"r"(target),
               "f"(first), "f"(second), "r"(barrier) : "memory");
}

// Until all that was sent is here.
__device__ void wait_for_sent(uint64_t& barrier) {
  asm volatile(
      "{.reg .pred done;\n"
      "again: mbarrier.try_wait.parity.acquire.cluster.shared::cta.b64 done, [%0], 0;\n"
      "@!done bra again;}" ::"r"(shared_address(&barrier)) : "memory");
}

__device__ float4 load_shared(uint32_t address) {
  float4 found;
  asm volatile("ld.shared.v4.f32 {%0, %1, %2, %3}, [%4];"
               : "=f"(found.x), "=f"(found.y), "=f"(found.z), "=f"(found.w) : "r"(address));
  return found;
}

// Eight neighbouring sums of a row, of all blocks of the cluster, which are `distance` apart, in a fixed order.
template <int BLOCKS>
__device__ void add_up(float (&total)[8], uint32_t address, int distance) {
#pragma unroll
  for (float& each : total) each = 0;
#pragma unroll
  for (int sender = 0; sender < BLOCKS; ++sender) {
    const float4 low = load_shared(address + sender * distance), high = load_shared(address + sender * distance + 16);
    total[0] += low.x, total[1] += low.y, total[2] += low.z, total[3] += low.w;
    total[4] += high.x, total[5] += high.y, total[6] += high.z, total[7] += high.w;
  }
}

__device__ void add_to(float (&sums)[8], const uint4& eight) {
  const __nv_bfloat162* pairs = reinterpret_cast<const __nv_bfloat162*>(&eight);
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const float2 pair = __bfloat1622float2(pairs[i]);
    sums[2 * i] += pair.x;
    sums[2 * i + 1] += pair.y;
  }
}

__device__ uint4 rounded(const float (&values)[8]) {
  uint4 eight;
#pragma unroll
  for (int i = 0; i < 4; ++i)
    reinterpret_cast<__nv_bfloat162*>(&eight)[i] = __floats2bfloat162_rn(values[2 * i], values[2 * i + 1]);
  return eight;
}

// Of the lanes that share a row, to each.
template <int LANES>
__device__ float sum_of_lanes(float value) {
#pragma unroll
  for (int other = 1; other < LANES; other *= 2) value += __shfl_xor_sync(~0u, value, other);
  return value;
}

// Eight outputs of the cluster, of a row that this block owns. `place` is the first of the eight among the cluster's,
// `feature` among all; `local` is the row among the block's.
struct Outputs {
  int local, row, place, feature;
  bool exist;
};

// A block's share of the cluster's outputs, eight at a time by each thread.
template <int TOKENS, bool GATED, int BLOCKS>
struct Share {
  static constexpr int OWNED = TOKENS / BLOCKS, OUTPUTS = GATED ? FEATURES / 2 : FEATURES, GROUPS = OUTPUTS / 8;
  static constexpr int ROW_BYTES = Layout<TOKENS>::ROW * 4, ALL = OWNED * GROUPS;
  const Work& work;
  int first_feature;

  __device__ Outputs outputs(int item) const {
    const int local = item / GROUPS, row = blockIdx.x * OWNED + local, place = item % GROUPS * 8;
    const int feature = first_feature + place;
    return {local, row, place, feature, local < OWNED && row < work.rows && feature < work.features};
  }

  // What is known before the products are: the residual, and what x was not divided by.
  struct Before {
    uint4 residual;
    float scale;
  };

  // For a warp at a time; GROUPS lanes share a row.
  __device__ Before before(const Outputs& o) const {
    Before found = {{}, 1};
    if (work.adds && o.exist) found.residual = *reinterpret_cast<const uint4*>(work.out + index(o));
    if (work.squares) {
      float squares = 0;
      if (o.local < OWNED && o.row < work.rows)
        for (int i = o.place / 8; i < work.partials; i += GROUPS) squares += work.squares[o.row * work.partials + i];
      found.scale = rsqrtf(sum_of_lanes<GROUPS>(squares) / work.k + work.eps);
    }
    return found;
  }

  __device__ int64_t index(const Outputs& o) const { return (int64_t)o.row * work.features + o.feature; }

  // Once all is at `sent`. `first` belongs to the first outputs of each thread.
  __device__ void finish(uint32_t sent, const Before& first) const {
    for (int item = threadIdx.x; item / 32 * 32 < ALL; item += WARPS * 32) {
      const Outputs o = outputs(item);
      const Before of = item < WARPS * 32 ? first : before(o);
      float y[8] = {};
      if (o.exist) {
        multiplied(y, sent + o.local * ROW_BYTES, o, of.scale);
        add_to(y, of.residual);
        *reinterpret_cast<uint4*>(work.out + index(o)) = rounded(y);
      }
      if (!GATED && work.next_norm) begin_norm(y, o);
    }
  }

  __device__ void multiplied(float (&y)[8], uint32_t row, const Outputs& o, float scale) const {
    add_up<BLOCKS>(y, row + o.place * 4, OWNED * ROW_BYTES);
#pragma unroll
    for (float& each : y) each *= scale;
    if (work.bias) add_to(y, *reinterpret_cast<const uint4*>(work.bias + o.feature));
    if (!GATED) return;
    float up[8];
    add_up<BLOCKS>(up, row + (OUTPUTS + o.place) * 4, OWNED * ROW_BYTES);
#pragma unroll
    for (float& each : up) each *= scale;
    if (work.bias) add_to(up, *reinterpret_cast<const uint4*>(work.bias + work.features + o.feature));
#pragma unroll
    for (int i = 0; i < 8; ++i) y[i] = y[i] / (1 + __expf(-y[i])) * up[i];
  }

  // The next norm's part that can be done here, of the outputs as they were rounded. Eight lanes share a row.
  __device__ void begin_norm(const float (&y)[8], const Outputs& o) const {
    float values[8] = {}, factors[8] = {}, squares = 0;
    add_to(values, rounded(y));
    if (o.exist) add_to(factors, *reinterpret_cast<const uint4*>(work.next_norm + o.feature));
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      squares += values[i] * values[i];
      values[i] *= factors[i];
    }
    squares = sum_of_lanes<8>(squares);
    if (!o.exist) return;
    *reinterpret_cast<uint4*>(work.scaled + index(o)) = rounded(values);
    if (o.place == 0) work.next_squares[o.row * gridDim.y + blockIdx.y] = squares;
  }
};

// A cluster's blocks, side by side in the grid's first dimension, each take a piece of K of the same FEATURES rows.
template <int TOKENS, bool GATED, int BLOCKS>
__global__ void __launch_bounds__(THREADS, 2)
    few_kernel(const __grid_constant__ CUtensorMap x_map, const __grid_constant__ CUtensorMap weight_map, Work work) {
  using L = Layout<TOKENS>;
  using Mine = Share<TOKENS, GATED, BLOCKS>;
  extern __shared__ uint8_t unaligned[];
  __shared__ uint64_t full[L::MOST_STAGES], empty[L::MOST_STAGES], all_sent;
  if (work.starts_next_early) asm volatile("griddepcontrol.launch_dependents;");
  const int rank = blockIdx.x, first_feature = blockIdx.y * Mine::OUTPUTS;
  const int all_steps = (work.k + SPAN - 1) / SPAN, most_steps = (all_steps + BLOCKS - 1) / BLOCKS;
  const int first_step = all_steps * rank / BLOCKS, steps = all_steps * (rank + 1) / BLOCKS - first_step;
  const uint32_t ring = (shared_address(unaligned) + 1023) & ~1023u, sent = ring + L::stages(most_steps) * L::STAGE;
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  if (threadIdx.x == WARPS * 32) {
    for (int stage = 0; stage < L::MOST_STAGES; ++stage) {
      set_up(full[stage], 1);
      set_up(empty[stage], WARPS);
    }
    set_up(all_sent, 1);
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
    if (BLOCKS > 1) arrive_and_expect(all_sent, TOKENS * FEATURES * 4);
  }
  __syncthreads();
  asm volatile("barrier.cluster.arrive.release.aligned;" ::: "memory");
  if (warp == WARPS) {
    if (lane == 0) {
      const auto bring_weight = [&](int stage, int step) {
        const uint32_t target = ring + stage * L::STAGE;
        const int column = (first_step + step) * SPAN;
        arrive_and_expect(full[stage], L::STAGE);
        copy(weight_map, target, full[stage], column, first_feature);
        if (GATED) copy(weight_map, target + L::WEIGHT_BYTES / 2, full[stage], column, work.features + first_feature);
      };
      const auto bring_x = [&](int stage, int step) {
        copy(x_map, ring + stage * L::STAGE + L::WEIGHT_BYTES, full[stage], (first_step + step) * SPAN, 0);
      };
      const int ahead = min(steps, L::MOST_STAGES);
      for (int step = 0; step < ahead; ++step) bring_weight(step, step);
      asm volatile("prefetch.tensormap [%0];" ::"l"(&x_map) : "memory");
      asm volatile("griddepcontrol.wait;" ::: "memory");
      for (int step = 0; step < ahead; ++step) bring_x(step, step);
      Ring<L::MOST_STAGES> at;
      for (int step = L::MOST_STAGES; step < steps; ++step, at.advance()) {
        wait(empty[at.stage], at.parity);
        bring_weight(at.stage, step);
        bring_x(at.stage, step);
      }
      if (!work.starts_next_early) asm volatile("griddepcontrol.launch_dependents;");
    }
    __syncwarp();
    asm volatile("barrier.cluster.wait.acquire.aligned;" ::: "memory");
    return;
  }
  const Mine mine{work, first_feature};
  asm volatile("griddepcontrol.wait;" ::: "memory");
  const auto before = mine.before(mine.outputs(threadIdx.x));
  float sums[TOKENS / 2];
  Ring<L::MOST_STAGES> at;
  int previous = 0;
  for (int step = 0; step < steps; ++step, at.advance()) {
    const uint32_t stage = ring + at.stage * L::STAGE;
    const uint64_t weight = operand(stage), x = operand(stage + L::WEIGHT_BYTES);
    wait(full[at.stage], at.parity);
    hold(sums);
    begin_products();
#pragma unroll
    for (int k = 0; k < SPAN / 16; ++k) multiply(sums, weight + k * 2, x + k * 2, step | k);  // 32 bytes on
    commit_products();
    hold(sums);
    wait_for_products<1>();
    if (step && lane == 0) arrive(empty[previous]);
    previous = at.stage;
  }
  wait_for_products<0>();
  hold(sums);
  asm volatile("barrier.cluster.wait.acquire.aligned;" ::: "memory");  // all blocks are there and can be sent to
  // A thread has a feature of two rows. With the one that has the next feature it shares: each a row, both features.
  const bool second = lane / 4 % 2;
#pragma unroll
  for (int c = 0; c < TOKENS / 8; ++c)
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const float first_row = sums[4 * c + 2 * r], second_row = sums[4 * c + 2 * r + 1];
      const float other = __shfl_xor_sync(~0u, second ? first_row : second_row, 4);
      const int row = c * 8 + lane % 4 * 2 + second, feature = warp * 16 + r * 8 + lane / 8 * 2;
      const int owner = row / Mine::OWNED, place = rank * Mine::OWNED + row % Mine::OWNED;
      const uint32_t target = sent + (place * L::ROW + feature) * 4;
      const float left = second ? other : first_row, right = second ? second_row : other;
      if (BLOCKS == 1)
        store_shared(target, left, right);
      else
        send(address_at(target, owner), address_at(shared_address(&all_sent), owner), left, right);
    }
  if (BLOCKS == 1)
    asm volatile("bar.sync 1, 128;" ::: "memory");  // of those that multiply
  else
    wait_for_sent(all_sent);
  mine.finish(sent, before);
}

// The kernels that there are: for so many rows of x at most, and blocks to a sum.
template <class Visitor>
cudaError_t visit(int rows, bool gated, int blocks, const Visitor& visitor) {
  const auto of_blocks = [&](auto tokens, auto is_gated) {
    constexpr int TOKENS = decltype(tokens)::value;
    constexpr bool GATED = decltype(is_gated)::value;
    return blocks == 1   ? visitor(few_kernel<TOKENS, GATED, 1>, Layout<TOKENS>())
           : blocks == 2 ? visitor(few_kernel<TOKENS, GATED, 2>, Layout<TOKENS>())
           : blocks == 4 ? visitor(few_kernel<TOKENS, GATED, 4>, Layout<TOKENS>())
                         : visitor(few_kernel<TOKENS, GATED, 8>, Layout<TOKENS>());
  };
  const auto of_tokens = [&](auto is_gated) {
    return rows <= 8    ? of_blocks(std::integral_constant<int, 8>(), is_gated)
           : rows <= 16 ? of_blocks(std::integral_constant<int, 16>(), is_gated)
           : rows <= 32 ? of_blocks(std::integral_constant<int, 32>(), is_gated)
                        : of_blocks(std::integral_constant<int, 64>(), is_gated);
  };
  return gated ? of_tokens(std::true_type()) : of_tokens(std::false_type());
}

int tokens_of(int rows) { return rows <= 8 ? 8 : rows <= 16 ? 16 : rows <= 32 ? 32 : 64; }

}  // namespace

// Both return what went wrong, or null.

// To be called once for each device, while it is current: lets the kernels have their shared memory, and loads them.
extern "C" const char* mini_infer_few_prepare() {
  cudaError_t error = cudaSuccess;
  for (int rows : {8, 16, 32, 64})
    for (bool gated : {false, true})
      for (int blocks : {1, 2, 4, 8})
        if (error == cudaSuccess)
          error = visit(rows, gated, blocks, [](auto kernel, auto layout) {
            const int most = layout.shared_bytes(layout.MOST_STAGES);
            return cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, most);
          });
  return error == cudaSuccess ? nullptr : cudaGetErrorString(error);
}

// x [rows, k], rows x_stride elements apart, weight [features, k] or, gated, [2 features, k], out [rows, features]; k,
// x_stride and features are multiples of 8 (gated: features of 32); all begin at multiples of 16 bytes. blocks: 1, 2, 4
// or 8, that share a sum. squares [rows, partials]: x is half normed. next_norm [features]: the result is to be half
// normed, into scaled [rows, features] and next_squares [rows, features / 64 rounded up]. early: it may start before the
// kernel before it has ended.
extern "C" const char* mini_infer_few(int blocks, bool gated, bool early, void* out, const void* x, const void* weight,
                                      const void* bias, bool adds, int features, int k, int rows, int64_t x_stride,
                                      const void* squares, int partials, float eps, const void* next_norm, void* scaled,
                                      void* next_squares, bool starts_next_early, cudaStream_t stream) {
  const Work work{static_cast<bf16*>(out), static_cast<const bf16*>(bias), adds, features, k, rows,
                  static_cast<const float*>(squares), partials, eps, static_cast<const bf16*>(next_norm),
                  static_cast<bf16*>(scaled), static_cast<float*>(next_squares), starts_next_early};
  if (rows < 1 || rows > 64) return "rows must be 1 to 64";
  if (blocks < 1 || blocks > 8 || blocks & (blocks - 1) || blocks > (k + SPAN - 1) / SPAN)
    return "blocks must be 1, 2, 4 or 8, with 64 of K each";
  const int outputs = gated ? FEATURES / 2 : FEATURES;
  if (features < 8 || features % (gated ? outputs : 8)) return "N must be a multiple of 8, gated of 32";
  if (gated && next_norm) return "the next norm is begun where nothing is gated";
  if (k < 8 || k % 8 || x_stride % 8) return "K must be a multiple of 8";
  CUtensorMap x_map, weight_map;
  if (!describe<2>(&x_map, x, {(uint64_t)k, (uint64_t)rows}, {(uint64_t)x_stride * 2},
                   {SPAN, (uint32_t)tokens_of(rows)}) ||
      !describe(&weight_map, weight, gated ? 2 * features : features, k, outputs))
    return "the operands cannot be described to the copy engine, or the driver is too old for it";
  cudaLaunchAttribute attributes[2];
  attributes[0].id = cudaLaunchAttributeClusterDimension;
  attributes[0].val.clusterDim.x = blocks, attributes[0].val.clusterDim.y = attributes[0].val.clusterDim.z = 1;
  attributes[1].id = cudaLaunchAttributeProgrammaticStreamSerialization;
  attributes[1].val.programmaticStreamSerializationAllowed = 1;
  cudaLaunchConfig_t config = {};
  config.gridDim = dim3(blocks, (features + outputs - 1) / outputs);
  config.blockDim = dim3(THREADS);
  config.stream = stream;
  config.attrs = attributes;
  config.numAttrs = early ? 2 : 1;
  const cudaError_t error = visit(rows, gated, blocks, [&](auto kernel, auto layout) {
    config.dynamicSmemBytes = layout.shared_bytes(((k + SPAN - 1) / SPAN + blocks - 1) / blocks);
    return cudaLaunchKernelEx(&config, kernel, x_map, weight_map, work);
  });
  return error == cudaSuccess ? nullptr : cudaGetErrorString(error);
}
