// Matrix products with up to 16 rows, as decode steps have them: x [M, K] times W [N, K] transposed in bfloat16, with a
// norm before it, and bias, gate or residual after it (ops/epilogue.py says what they mean).
//
// The time is that of reading W, so each block reads whole rows of it side by side, straight into registers, and asks
// for the next piece before it multiplies the last. The tensor cores take 16 features of W as the rows of their first
// operand and 8 rows of x as the columns of the second. They sum over k in any order, as long as both operands have the
// same: so a thread takes 8 neighbouring k at a time, 16 bytes of W and 16 of x, and no element has to move.
//
// A norm is folded in by (x / rms(x) * g) W = (x * g) W / rms(x): the squares are summed while x streams by. x * g is
// rounded before the product, and may exceed what float16 can hold, so there is no kernel for that.

#include <cuda_bf16.h>
#include <cuda_runtime.h>
#include <stdint.h>

namespace {

using bf16 = __nv_bfloat16;

constexpr int STEP = 32;  // of K, that the 4 threads of a row take at once, 8 each

struct Work {
  bf16* out;              // [M, N]
  const bf16* x;          // [M, K], rows x_stride elements apart
  const bf16* norm;       // [K] or null
  const bf16* weight;     // [N, K], or [2N, K] if gated
  const bf16* bias;       // as many as W has rows, or null
  bool adds;              // out holds a residual
  float eps;
  int features, k, rows;  // N, K, M
  int64_t x_stride;
  bool starts_next_early;  // the kernel after this one may start at once, not when this one has read its weights
};

// Weights are read once: they need not push anything out of the first cache.
__device__ uint4 load_once(const bf16* from) {
  uint4 value;
  asm volatile("ld.global.nc.L1::no_allocate.v4.u32 {%0,%1,%2,%3}, [%4];"
               : "=r"(value.x), "=r"(value.y), "=r"(value.z), "=r"(value.w) : "l"(from));
  return value;
}

// sums [16, 8] += a [16, 16] b [16, 8], in fragments: a thread holds 4 sums and pairs of a and b.
__device__ void multiply(float (&sums)[4], uint32_t a0, uint32_t a1, uint32_t a2, uint32_t a3, uint32_t b0,
                         uint32_t b1) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
      : "+f"(sums[0]), "+f"(sums[1]), "+f"(sums[2]), "+f"(sums[3])
      : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
}

__device__ float2 floats(uint32_t pair) { return __bfloat1622float2(reinterpret_cast<__nv_bfloat162&>(pair)); }

// Eight of x times their norm weights, rounded; `squares` takes the sum of what x was.
__device__ void scale(uint4& values, const uint4& factors, float& squares) {
  uint32_t* pairs = reinterpret_cast<uint32_t*>(&values);
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const float2 value = floats(pairs[i]), factor = floats(reinterpret_cast<const uint32_t*>(&factors)[i]);
    squares += value.x * value.x + value.y * value.y;
    const __nv_bfloat162 scaled = __float22bfloat162_rn(make_float2(value.x * factor.x, value.y * factor.y));
    pairs[i] = reinterpret_cast<const uint32_t&>(scaled);
  }
}

// A block: TILES x 16 rows of W (gated: 16 of gates and the 16 that they gate), its warps side by side along K, each
// UNROLL steps at a time. Before `griddepcontrol.wait` only weights are read (ops/pdl.py).
template <int ROWS, int TILES, int WARPS, int UNROLL, bool GATED, bool NORM>
__global__ void __launch_bounds__(WARPS * 32) skinny_kernel(Work work) {
  constexpr int GROUPS = ROWS / 8, PIECE = UNROLL * STEP, OUTPUTS = GATED ? 16 : 16 * TILES;
  static_assert(!GATED || TILES == 2, "a tile of gates and one of what they gate");
  __shared__ float parts[WARPS][16 * TILES][ROWS + 1];
  __shared__ float squares[WARPS][ROWS];
  if (work.starts_next_early) asm volatile("griddepcontrol.launch_dependents;");
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, row = lane / 4, column = lane % 4 * 8;
  const int first_feature = blockIdx.x * OUTPUTS;
  const bf16* weight[TILES][2];
  for (int tile = 0; tile < TILES; ++tile)
    for (int half = 0; half < 2; ++half) {
      const int feature = min(first_feature + (GATED ? 0 : tile * 16) + half * 8 + row, work.features - 1);
      const int64_t number = feature + (GATED && tile ? (int64_t)work.features : 0);
      weight[tile][half] = work.weight + number * work.k + column;
    }
  uint4 ahead[UNROLL][TILES][2];
  auto load = [&](int begin) {
#pragma unroll
    for (int u = 0; u < UNROLL; ++u)
#pragma unroll
      for (int tile = 0; tile < TILES; ++tile)
#pragma unroll
        for (int half = 0; half < 2; ++half)
          if (begin + u * STEP < work.k) ahead[u][tile][half] = load_once(weight[tile][half] + begin + u * STEP);
  };
  load(warp * PIECE);
  asm volatile("griddepcontrol.wait;" ::: "memory");

  float sums[TILES][GROUPS][4] = {};
  float square[GROUPS] = {};
  const bf16* x = work.x + column;
  const bf16* norm = work.norm + column;
  for (int begin = warp * PIECE; begin < work.k; begin += WARPS * PIECE) {
    uint4 values[UNROLL][GROUPS];
#pragma unroll
    for (int u = 0; u < UNROLL; ++u)
#pragma unroll
      for (int group = 0; group < GROUPS; ++group) {
        const int token = group * 8 + row;
        values[u][group] = make_uint4(0, 0, 0, 0);
        if (token < work.rows && begin + u * STEP < work.k)
          values[u][group] = *reinterpret_cast<const uint4*>(x + token * work.x_stride + begin + u * STEP);
      }
    if (NORM) {
#pragma unroll
      for (int u = 0; u < UNROLL; ++u) {
        if (begin + u * STEP >= work.k) continue;
        const uint4 factors = *reinterpret_cast<const uint4*>(norm + begin + u * STEP);
#pragma unroll
        for (int group = 0; group < GROUPS; ++group) scale(values[u][group], factors, square[group]);
      }
    }
    uint4 mine[UNROLL][TILES][2];
#pragma unroll
    for (int u = 0; u < UNROLL; ++u)
#pragma unroll
      for (int tile = 0; tile < TILES; ++tile)
#pragma unroll
        for (int half = 0; half < 2; ++half) mine[u][tile][half] = ahead[u][tile][half];
    load(begin + WARPS * PIECE);
#pragma unroll
    for (int u = 0; u < UNROLL; ++u) {
      if (begin + u * STEP >= work.k) continue;
#pragma unroll
      for (int tile = 0; tile < TILES; ++tile)
#pragma unroll
        for (int group = 0; group < GROUPS; ++group) {
          const uint4 low = mine[u][tile][0], high = mine[u][tile][1], value = values[u][group];
          multiply(sums[tile][group], low.x, high.x, low.y, high.y, value.x, value.y);
          multiply(sums[tile][group], low.z, high.z, low.w, high.w, value.z, value.w);
        }
    }
  }
  if (!work.starts_next_early) asm volatile("griddepcontrol.launch_dependents;");

  for (int tile = 0; tile < TILES; ++tile)
    for (int group = 0; group < GROUPS; ++group)
      for (int i = 0; i < 4; ++i)
        parts[warp][tile * 16 + row + i / 2 * 8][group * 8 + lane % 4 * 2 + i % 2] = sums[tile][group][i];
  if (NORM)
    for (int group = 0; group < GROUPS; ++group) {
      float total = square[group];
      total += __shfl_xor_sync(~0u, total, 1);
      total += __shfl_xor_sync(~0u, total, 2);
      if (lane % 4 == 0) squares[warp][group * 8 + row] = total;
    }
  __syncthreads();
  for (int i = threadIdx.x; i < OUTPUTS * work.rows; i += WARPS * 32) {
    const int place = i % OUTPUTS, token = i / OUTPUTS, feature = first_feature + place;
    if (feature >= work.features) continue;
    float y = 0, up = 0, total = 0;
    for (int part = 0; part < WARPS; ++part) {
      y += parts[part][place][token];
      if (GATED) up += parts[part][16 + place][token];
      if (NORM) total += squares[part][token];
    }
    if (NORM) {
      const float factor = rsqrtf(total / work.k + work.eps);
      y *= factor;
      up *= factor;
    }
    if (work.bias) {
      y += __bfloat162float(work.bias[feature]);
      if (GATED) up += __bfloat162float(work.bias[work.features + feature]);
    }
    if (GATED) y = y / (1 + __expf(-y)) * up;
    bf16* target = work.out + (int64_t)token * work.features + feature;
    if (work.adds) y += __bfloat162float(*target);
    *target = __float2bfloat16(y);
  }
}

template <int ROWS, int TILES, int WARPS, int UNROLL>
cudaError_t launch(const Work& work, bool gated, bool early, cudaStream_t stream) {
  void (*kernel)(Work) = work.norm ? skinny_kernel<ROWS, TILES, WARPS, UNROLL, false, true>
                                   : skinny_kernel<ROWS, TILES, WARPS, UNROLL, false, false>;
  if (gated) {
    if constexpr (TILES == 2)
      kernel = work.norm ? skinny_kernel<ROWS, TILES, WARPS, UNROLL, true, true>
                         : skinny_kernel<ROWS, TILES, WARPS, UNROLL, true, false>;
    else
      return cudaErrorInvalidValue;
  }
  const int outputs = gated ? 16 : 16 * TILES;
  cudaLaunchAttribute attribute;
  attribute.id = cudaLaunchAttributeProgrammaticStreamSerialization;
  attribute.val.programmaticStreamSerializationAllowed = 1;
  cudaLaunchConfig_t config = {};
  config.gridDim = dim3((work.features + outputs - 1) / outputs);
  config.blockDim = dim3(WARPS * 32);
  config.stream = stream;
  config.attrs = &attribute;
  config.numAttrs = early ? 1 : 0;
  return cudaLaunchKernelEx(&config, kernel, work);
}

// The tiles that ops/cuda_skinny.py chooses from.
template <int ROWS>
cudaError_t launch(const Work& work, int tiles, int warps, int unroll, bool gated, bool early, cudaStream_t stream) {
  const auto is = [&](int t, int w, int u) { return tiles == t && warps == w && unroll == u; };
  if (is(2, 16, 2)) return launch<ROWS, 2, 16, 2>(work, gated, early, stream);
  if (is(2, 8, 2)) return launch<ROWS, 2, 8, 2>(work, gated, early, stream);
  if (is(1, 16, 4)) return launch<ROWS, 1, 16, 4>(work, gated, early, stream);
  if (is(1, 4, 4)) return launch<ROWS, 1, 4, 4>(work, gated, early, stream);
  return cudaErrorInvalidValue;
}

bool aligned(const void* pointer) { return reinterpret_cast<uintptr_t>(pointer) % sizeof(uint4) == 0; }

}  // namespace

// What went wrong, or null. gated, adds, starts_next_early: 0 or 1. early: it may start before the kernel before it has
// ended. K is a multiple of 32; x, its rows, norm and weight begin at multiples of 16 bytes.
extern "C" const char* mini_infer_skinny(int tiles, int warps, int unroll, int gated, int early, void* out,
                                         const void* x, const void* norm, const void* weight, const void* bias,
                                         int adds, float eps, int features, int k, int rows, int64_t x_stride,
                                         int starts_next_early, cudaStream_t stream) {
  const Work work{static_cast<bf16*>(out), static_cast<const bf16*>(x), static_cast<const bf16*>(norm),
                  static_cast<const bf16*>(weight), static_cast<const bf16*>(bias), adds != 0, eps, features, k, rows,
                  x_stride, starts_next_early != 0};
  if (rows < 1 || rows > 16) return "rows must be 1 to 16";
  if (k < STEP || k % STEP) return "K must be a multiple of 32";
  if (!aligned(x) || x_stride % 8 || !aligned(norm) || !aligned(weight)) return "not aligned to 16 bytes";
  const cudaError_t error = rows <= 8 ? launch<8>(work, tiles, warps, unroll, gated, early, stream)
                                      : launch<16>(work, tiles, warps, unroll, gated, early, stream);
  return error == cudaSuccess ? nullptr : cudaGetErrorString(error);
}
