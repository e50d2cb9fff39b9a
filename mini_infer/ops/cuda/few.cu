// Products with 9 to 64 rows, x [M, K] times a weight [N, K] transposed in bfloat16, with a gate, a bias or a residual
// after it (ops/epilogue.py says what they mean). For Hopper alone (sm_90a).
//
// So few rows take no time to multiply, and a small weight little to read: what counts is how long the memory takes to
// answer. So all that a block needs is asked for at once, its weights before the kernel before this one has ended
// (griddepcontrol, ops/pdl.py), and there are blocks for all SMs: those of a cluster share a sum, each a piece of K,
// and add up through each other's shared memory.
//
// The tensor cores take 64 rows of the weight as the rows of their first operand and the rows of x as the columns of
// the second, so that few of these waste nothing.

#include <type_traits>

#include "hopper.cuh"

namespace {

struct Work {
  bf16* out;         // [M, N]
  const bf16* bias;  // as many as the weight has rows, or null
  bool adds;         // out holds a residual
  int features, k, rows;  // N, K, M
  bool starts_next_early;  // the kernel after this one may start at once, not when this one has read its weights
};

constexpr int FEATURES = 64;  // rows of the weight that a cluster multiplies; gated: half of them gates
constexpr int WARPS = 4, THREADS = WARPS * 32 + 32;  // those that multiply, and one that copies

// For up to TOKENS rows of x. Two blocks fit an SM, so that one may start while another ends.
template <int TOKENS>
struct Layout {
  static constexpr int WEIGHT_BYTES = FEATURES * SPAN_BYTES, X_BYTES = TOKENS * SPAN_BYTES;
  static constexpr int STAGE = WEIGHT_BYTES + X_BYTES;
  static constexpr int STAGES = (MOST_SHARED / 2 - 3072) / STAGE > 16 ? 16 : (MOST_SHARED / 2 - 3072) / STAGE;
  // Sums are left as [TOKENS][ROW] once all is multiplied; rows are four banks apart, so that a warp hits each once.
  static constexpr int ROW = FEATURES + 4;
  static constexpr int SHARED_BYTES = STAGES * STAGE + 1024;
  static_assert(STAGES >= 4 && TOKENS * ROW * 4 <= STAGES * STAGE, "");
};

// sums [64, TOKENS] (+)= weight [64, 16] x [TOKENS, 16]^T, both in shared memory. Of a warp's 16 features a thread holds
// two: sums[4 c + 2 r + i] is feature lane / 4 + 8 r, token 8 c + lane % 4 * 2 + i.
#define REGISTERS_16 "%3,%4,%5,%6,%7,%8,%9,%10"
#define REGISTERS_32 REGISTERS_16 ",%11,%12,%13,%14,%15,%16,%17,%18"
#define REGISTERS_64 REGISTERS_32 ",%19,%20,%21,%22,%23,%24,%25,%26,%27,%28,%29,%30,%31,%32,%33,%34"
#define EIGHT(i) \
  "+f"(sums[i]), "+f"(sums[i + 1]), "+f"(sums[i + 2]), "+f"(sums[i + 3]), "+f"(sums[i + 4]), "+f"(sums[i + 5]), \
      "+f"(sums[i + 6]), "+f"(sums[i + 7])
#define SUMS_16 EIGHT(0)
#define SUMS_32 SUMS_16, EIGHT(8)
#define SUMS_64 SUMS_32, EIGHT(16), EIGHT(24)
#define DEFINE_MULTIPLY(TOKENS)                                                                                \
  __device__ __forceinline__ void multiply(float (&sums)[TOKENS / 2], uint64_t weight, uint64_t x, int adds) { \
    asm volatile(                                                                                              \
        "{.reg .pred adds;\n"                                                                                  \
        "setp.ne.b32 adds, %2, 0;\n"                                                                           \
        "wgmma.mma_async.sync.aligned.m64n" #TOKENS "k16.f32.bf16.bf16 {" REGISTERS_##TOKENS                   \
        "}, %0, %1, adds, 1, 1, 0, 0;}"                                                                        \
        : "+l"(weight), "+l"(x), "+r"(adds), SUMS_##TOKENS);                                                   \
  }
DEFINE_MULTIPLY(16)
DEFINE_MULTIPLY(32)
DEFINE_MULTIPLY(64)

__device__ void meet_cluster() {
  asm volatile("barrier.cluster.arrive.release.aligned;\nbarrier.cluster.wait.acquire.aligned;" ::: "memory");
}

// Four numbers at this address of the cluster's block `rank`.
__device__ float4 load_from(uint32_t address, int rank) {
  float4 found;
  asm volatile(
      "{.reg .b32 there;\n"
      "mapa.shared::cluster.u32 there, %4, %5;\n"
      "ld.shared::cluster.v4.f32 {%0, %1, %2, %3}, [there];}"
      : "=f"(found.x), "=f"(found.y), "=f"(found.z), "=f"(found.w) : "r"(address), "r"(rank));
  return found;
}

// Eight neighbouring sums of a token, of all blocks of the cluster, in a fixed order; all asked for at once.
template <int BLOCKS>
__device__ void add_up(float (&total)[8], uint32_t address) {
  float4 low[BLOCKS], high[BLOCKS];
#pragma unroll
  for (int rank = 0; rank < BLOCKS; ++rank) {
    low[rank] = load_from(address, rank);
    high[rank] = load_from(address + 16, rank);
  }
#pragma unroll
  for (float& each : total) each = 0;
#pragma unroll
  for (int rank = 0; rank < BLOCKS; ++rank) {
    total[0] += low[rank].x, total[1] += low[rank].y, total[2] += low[rank].z, total[3] += low[rank].w;
    total[4] += high[rank].x, total[5] += high[rank].y, total[6] += high[rank].z, total[7] += high[rank].w;
  }
}

__device__ void add_to(float (&sums)[8], const bf16* from) {
  const uint4 eight = *reinterpret_cast<const uint4*>(from);
  const __nv_bfloat162* pairs = reinterpret_cast<const __nv_bfloat162*>(&eight);
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const float2 pair = __bfloat1622float2(pairs[i]);
    sums[2 * i] += pair.x;
    sums[2 * i + 1] += pair.y;
  }
}

// A block's share of the cluster's outputs: added up, and to what they belong to.
template <int TOKENS, bool GATED, int BLOCKS>
__device__ void finish(const Work& work, uint32_t sums, int first_feature) {
  constexpr int OUTPUTS = GATED ? FEATURES / 2 : FEATURES, GROUPS = OUTPUTS / 8;
  for (int item = blockIdx.x * WARPS * 32 + threadIdx.x; item < work.rows * GROUPS; item += BLOCKS * WARPS * 32) {
    const int token = item / GROUPS, place = item % GROUPS * 8, feature = first_feature + place;
    if (feature >= work.features) continue;
    const uint32_t address = sums + (token * Layout<TOKENS>::ROW + place) * 4;
    float y[8];
    add_up<BLOCKS>(y, address);
    if (work.bias) add_to(y, work.bias + feature);
    if (GATED) {
      float up[8];
      add_up<BLOCKS>(up, address + OUTPUTS * 4);
      if (work.bias) add_to(up, work.bias + work.features + feature);
#pragma unroll
      for (int i = 0; i < 8; ++i) y[i] = y[i] / (1 + __expf(-y[i])) * up[i];
    }
    bf16* const target = work.out + (int64_t)token * work.features + feature;
    if (work.adds) add_to(y, target);
    uint4 rounded;
#pragma unroll
    for (int i = 0; i < 4; ++i)
      reinterpret_cast<__nv_bfloat162*>(&rounded)[i] = __floats2bfloat162_rn(y[2 * i], y[2 * i + 1]);
    *reinterpret_cast<uint4*>(target) = rounded;
  }
}

// A cluster's blocks, side by side in the grid's first dimension, each take a piece of K of the same FEATURES rows.
template <int TOKENS, bool GATED, int BLOCKS>
__global__ void __launch_bounds__(THREADS, 2)
    few_kernel(const __grid_constant__ CUtensorMap x_map, const __grid_constant__ CUtensorMap weight_map, Work work) {
  using L = Layout<TOKENS>;
  constexpr int OUTPUTS = GATED ? FEATURES / 2 : FEATURES;
  extern __shared__ uint8_t unaligned[];
  __shared__ uint64_t full[L::STAGES], empty[L::STAGES];
  if (work.starts_next_early) asm volatile("griddepcontrol.launch_dependents;");
  const uint32_t ring = (shared_address(unaligned) + 1023) & ~1023u;
  const int rank = blockIdx.x, first_feature = blockIdx.y * OUTPUTS;
  const int all_steps = (work.k + SPAN - 1) / SPAN;
  const int first_step = all_steps * rank / BLOCKS, steps = all_steps * (rank + 1) / BLOCKS - first_step;
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  if (threadIdx.x == 0) {
    for (int stage = 0; stage < L::STAGES; ++stage) {
      set_up(full[stage], 1);
      set_up(empty[stage], WARPS);
    }
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
  }
  __syncthreads();
  if (warp == WARPS) {
    if (lane == 0) {
      const auto bring_weight = [&](int stage, int step) {
        const uint32_t target = ring + stage * L::STAGE;
        arrive_and_expect(full[stage], L::STAGE);
        copy(weight_map, target, full[stage], (first_step + step) * SPAN, first_feature);
        if (GATED)
          copy(weight_map, target + L::WEIGHT_BYTES / 2, full[stage], (first_step + step) * SPAN,
               work.features + first_feature);
      };
      const auto bring_x = [&](int stage, int step) {
        copy(x_map, ring + stage * L::STAGE + L::WEIGHT_BYTES, full[stage], (first_step + step) * SPAN, 0);
      };
      const int ahead = min(steps, L::STAGES);
      for (int step = 0; step < ahead; ++step) bring_weight(step, step);
      asm volatile("griddepcontrol.wait;" ::: "memory");
      for (int step = 0; step < ahead; ++step) bring_x(step, step);
      Ring<L::STAGES> at;
      for (int step = L::STAGES; step < steps; ++step, at.advance()) {
        wait(empty[at.stage], at.parity);
        bring_weight(at.stage, step);
        bring_x(at.stage, step);
      }
      if (!work.starts_next_early) asm volatile("griddepcontrol.launch_dependents;");
    }
    __syncwarp();
  } else {
    float sums[TOKENS / 2];
    Ring<L::STAGES> at;
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
    asm volatile("griddepcontrol.wait;" ::: "memory");  // the residual is the last kernel's, and so is what is replaced
    asm volatile("bar.sync 1, 128;" ::: "memory");  // all have read the ring
    const int feature = warp * 16 + lane / 4;
#pragma unroll
    for (int c = 0; c < TOKENS / 8; ++c)
#pragma unroll
      for (int r = 0; r < 2; ++r)
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          const int token = c * 8 + lane % 4 * 2 + i;
          asm volatile("st.shared.f32 [%0], %1;" ::"r"(ring + (token * L::ROW + feature + 8 * r) * 4),
                       "f"(sums[4 * c + 2 * r + i]) : "memory");
        }
  }
  meet_cluster();
  if (warp < WARPS) finish<TOKENS, GATED, BLOCKS>(work, ring, first_feature);
  meet_cluster();  // others may still read here
}

// The kernels that there are: for so many rows of x at most, and blocks to a sum.
template <class Visitor>
cudaError_t visit(int rows, bool gated, int blocks, const Visitor& visitor) {
  const auto of_blocks = [&](auto tokens, auto is_gated) {
    constexpr int TOKENS = decltype(tokens)::value;
    constexpr bool GATED = decltype(is_gated)::value;
    return blocks == 1   ? visitor(few_kernel<TOKENS, GATED, 1>, Layout<TOKENS>::SHARED_BYTES)
           : blocks == 2 ? visitor(few_kernel<TOKENS, GATED, 2>, Layout<TOKENS>::SHARED_BYTES)
           : blocks == 4 ? visitor(few_kernel<TOKENS, GATED, 4>, Layout<TOKENS>::SHARED_BYTES)
                         : visitor(few_kernel<TOKENS, GATED, 8>, Layout<TOKENS>::SHARED_BYTES);
  };
  const auto of_tokens = [&](auto is_gated) {
    return rows <= 16   ? of_blocks(std::integral_constant<int, 16>(), is_gated)
           : rows <= 32 ? of_blocks(std::integral_constant<int, 32>(), is_gated)
                        : of_blocks(std::integral_constant<int, 64>(), is_gated);
  };
  return gated ? of_tokens(std::true_type()) : of_tokens(std::false_type());
}

int tokens_of(int rows) { return rows <= 16 ? 16 : rows <= 32 ? 32 : 64; }

}  // namespace

// Both return what went wrong, or null.

// To be called once for each device, while it is current: lets the kernels have their shared memory, and loads them.
extern "C" const char* mini_infer_few_prepare() {
  cudaError_t error = cudaSuccess;
  for (int rows : {16, 32, 64})
    for (bool gated : {false, true})
      for (int blocks : {1, 2, 4, 8})
        if (error == cudaSuccess)
          error = visit(rows, gated, blocks, [](auto kernel, int bytes) {
            return cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes);
          });
  return error == cudaSuccess ? nullptr : cudaGetErrorString(error);
}

// x [rows, k], rows x_stride elements apart, weight [features, k] or, gated, [2 features, k], out [rows, features]; k,
// x_stride and features are multiples of 8 (gated: features of 32); all begin at multiples of 16 bytes. blocks: 1, 2, 4
// or 8, that share a sum. early: it may start before the kernel before it has ended.
extern "C" const char* mini_infer_few(int blocks, bool gated, bool early, void* out, const void* x, const void* weight,
                                      const void* bias, bool adds, int features, int k, int rows, int64_t x_stride,
                                      bool starts_next_early, cudaStream_t stream) {
  const Work work{static_cast<bf16*>(out), static_cast<const bf16*>(bias), adds, features, k, rows, starts_next_early};
  if (rows < 1 || rows > 64) return "rows must be 1 to 64";
  if (blocks < 1 || blocks > 8 || blocks & (blocks - 1) || blocks > (k + SPAN - 1) / SPAN)
    return "blocks must be 1, 2, 4 or 8, with 64 of K each";
  const int outputs = gated ? FEATURES / 2 : FEATURES;
  if (features < 8 || features % (gated ? outputs : 8)) return "N must be a multiple of 8, gated of 32";
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
  const cudaError_t error = visit(rows, gated, blocks, [&](auto kernel, int bytes) {
    config.dynamicSmemBytes = bytes;
    return cudaLaunchKernelEx(&config, kernel, x_map, weight_map, work);
  });
  return error == cudaSuccess ? nullptr : cudaGetErrorString(error);
}
