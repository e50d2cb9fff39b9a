// Matrix products with up to 16 rows, as decode steps have them: x [M, K] times W [N, K] transposed, with a norm before
// it, and bias, gate or residual after it (ops/skinny.py says what they mean).
//
// The time is that of reading W, so each block reads whole rows of it side by side, straight into registers, and asks
// for the next piece before it multiplies the last. The tensor cores take 16 features of W as the rows of their first
// operand and 8 rows of x as the columns of the second. They sum over k in any order, as long as both operands have the
// same: so a thread takes 8 neighbouring k at a time, 16 bytes of W and 16 of x, and no element has to move.

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>
#include <stdint.h>

namespace {

template <typename T> struct Half;

template <> struct Half<__nv_bfloat16> {
  static __device__ float2 floats(uint32_t pair) { return __bfloat1622float2(reinterpret_cast<__nv_bfloat162&>(pair)); }
  static __device__ uint32_t pair(float2 values) {
    __nv_bfloat162 both = __float22bfloat162_rn(values);
    return reinterpret_cast<uint32_t&>(both);
  }
  static __device__ void multiply(float (&acc)[4], uint32_t a0, uint32_t a1, uint32_t a2, uint32_t a3, uint32_t b0,
                                  uint32_t b1) {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
        : "+f"(acc[0]), "+f"(acc[1]), "+f"(acc[2]), "+f"(acc[3])
        : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
  }
};

template <> struct Half<__half> {
  static __device__ float2 floats(uint32_t pair) { return __half22float2(reinterpret_cast<__half2&>(pair)); }
  static __device__ uint32_t pair(float2 values) {
    __half2 both = __float22half2_rn(values);
    return reinterpret_cast<uint32_t&>(both);
  }
  static __device__ void multiply(float (&acc)[4], uint32_t a0, uint32_t a1, uint32_t a2, uint32_t a3, uint32_t b0,
                                  uint32_t b1) {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
        : "+f"(acc[0]), "+f"(acc[1]), "+f"(acc[2]), "+f"(acc[3])
        : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
  }
};

// Weights are read once: they need not push anything out of the first cache.
__device__ uint4 load_once(const void* from) {
  uint4 value;
  asm volatile("ld.global.nc.L1::no_allocate.v4.u32 {%0,%1,%2,%3}, [%4];"
               : "=r"(value.x), "=r"(value.y), "=r"(value.z), "=r"(value.w) : "l"(from));
  return value;
}

struct Work {
  void* out;              // [M, N]
  const void* x;          // [M, K], rows x_stride elements apart
  const void* norm;       // [K] or null
  const void* weight;     // [N, K], or [2N, K] if gated
  const void* bias;       // as many as W has rows, or null
  int adds;               // out holds a residual
  float eps;
  int features, k, rows;  // N, K, M
  long x_stride;
  int starts_next_early;  // the kernel after this one may start at once, or when this one has read its weights
};

// A block: TILES x 16 rows of W, its warps side by side along K, each UNROLL x 32 of it at a time.
template <typename T, int ROWS, int TILES, int WARPS, int UNROLL, bool GATED, bool NORM>
__global__ void __launch_bounds__(WARPS * 32) skinny_kernel(Work work) {
  constexpr int GROUPS = ROWS / 8, PIECE = UNROLL * 32, OUTPUTS = GATED ? 16 : 16 * TILES;
  static_assert(!GATED || TILES == 2, "a tile of gates and one of what they gate");
  __shared__ float parts[WARPS][16 * TILES][ROWS + 1];
  __shared__ float squares[WARPS][ROWS];
  if (work.starts_next_early) asm volatile("griddepcontrol.launch_dependents;");
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, row = lane / 4, column = lane % 4 * 8;
  const int first_feature = blockIdx.x * OUTPUTS;
  const T* weight[TILES][2];
  for (int tile = 0; tile < TILES; ++tile)
    for (int half = 0; half < 2; ++half) {
      const int feature = min(first_feature + (GATED ? 0 : tile * 16) + half * 8 + row, work.features - 1);
      const long number = feature + (GATED && tile ? (long)work.features : 0);
      weight[tile][half] = static_cast<const T*>(work.weight) + number * work.k + column;
    }
  uint4 ahead[UNROLL][TILES][2];
  auto load = [&](int begin) {
#pragma unroll
    for (int u = 0; u < UNROLL; ++u)
#pragma unroll
      for (int tile = 0; tile < TILES; ++tile)
#pragma unroll
        for (int half = 0; half < 2; ++half)
          if (begin + u * 32 < work.k) ahead[u][tile][half] = load_once(weight[tile][half] + begin + u * 32);
  };
  load(warp * PIECE);
  asm volatile("griddepcontrol.wait;" ::: "memory");

  float acc[TILES][GROUPS][4] = {};
  float sum[GROUPS] = {};
  const T* x = static_cast<const T*>(work.x) + column;
  const T* norm = static_cast<const T*>(work.norm) + column;
  for (int begin = warp * PIECE; begin < work.k; begin += WARPS * PIECE) {
    uint4 values[UNROLL][GROUPS];
#pragma unroll
    for (int u = 0; u < UNROLL; ++u)
#pragma unroll
      for (int group = 0; group < GROUPS; ++group) {
        const int token = group * 8 + row;
        values[u][group] = make_uint4(0, 0, 0, 0);
        if (token < work.rows && begin + u * 32 < work.k)
          values[u][group] = *reinterpret_cast<const uint4*>(x + token * work.x_stride + begin + u * 32);
      }
    if (NORM) {
#pragma unroll
      for (int u = 0; u < UNROLL; ++u) {
        if (begin + u * 32 >= work.k) continue;
        const uint4 scale = *reinterpret_cast<const uint4*>(norm + begin + u * 32);
#pragma unroll
        for (int group = 0; group < GROUPS; ++group) {
          uint32_t* pairs = reinterpret_cast<uint32_t*>(&values[u][group]);
#pragma unroll
          for (int i = 0; i < 4; ++i) {
            const float2 value = Half<T>::floats(pairs[i]);
            const float2 factor = Half<T>::floats(reinterpret_cast<const uint32_t*>(&scale)[i]);
            sum[group] += value.x * value.x + value.y * value.y;
            pairs[i] = Half<T>::pair(make_float2(value.x * factor.x, value.y * factor.y));
          }
        }
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
      if (begin + u * 32 >= work.k) continue;
#pragma unroll
      for (int tile = 0; tile < TILES; ++tile)
#pragma unroll
        for (int group = 0; group < GROUPS; ++group) {
          const uint4 low = mine[u][tile][0], high = mine[u][tile][1], value = values[u][group];
          Half<T>::multiply(acc[tile][group], low.x, high.x, low.y, high.y, value.x, value.y);
          Half<T>::multiply(acc[tile][group], low.z, high.z, low.w, high.w, value.z, value.w);
        }
    }
  }
  if (!work.starts_next_early) asm volatile("griddepcontrol.launch_dependents;");

  for (int tile = 0; tile < TILES; ++tile)
    for (int group = 0; group < GROUPS; ++group)
      for (int i = 0; i < 4; ++i)
        parts[warp][tile * 16 + row + i / 2 * 8][group * 8 + lane % 4 * 2 + i % 2] = acc[tile][group][i];
  if (NORM)
    for (int group = 0; group < GROUPS; ++group) {
      float total = sum[group];
      total += __shfl_xor_sync(~0u, total, 1);
      total += __shfl_xor_sync(~0u, total, 2);
      if (lane % 4 == 0) squares[warp][group * 8 + row] = total;
    }
  __syncthreads();
  const T* bias = static_cast<const T*>(work.bias);
  T* out = static_cast<T*>(work.out);
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
      const float scale = rsqrtf(total / work.k + work.eps);
      y *= scale;
      up *= scale;
    }
    if (bias) {
      y += (float)bias[feature];
      if (GATED) up += (float)bias[work.features + feature];
    }
    if (GATED) y = y / (1 + __expf(-y)) * up;
    T* target = out + (long)token * work.features + feature;
    if (work.adds) y += (float)*target;
    *target = (T)y;
  }
}

template <typename T, int ROWS, int TILES, int WARPS, int UNROLL, bool GATED, bool NORM>
int launch(const Work& work, int early, cudaStream_t stream) {
  cudaLaunchAttribute attribute;
  attribute.id = cudaLaunchAttributeProgrammaticStreamSerialization;
  attribute.val.programmaticStreamSerializationAllowed = 1;
  cudaLaunchConfig_t config = {};
  constexpr int OUTPUTS = GATED ? 16 : 16 * TILES;
  config.gridDim = dim3((work.features + OUTPUTS - 1) / OUTPUTS);
  config.blockDim = dim3(WARPS * 32);
  config.stream = stream;
  config.attrs = &attribute;
  config.numAttrs = early ? 1 : 0;
  return cudaLaunchKernelEx(&config, skinny_kernel<T, ROWS, TILES, WARPS, UNROLL, GATED, NORM>, work);
}

template <typename T, int ROWS, int TILES, int WARPS, int UNROLL>
int pick(const Work& work, int gated, int early, cudaStream_t stream) {
  if constexpr (TILES == 2)
    if (gated) return work.norm ? launch<T, ROWS, 2, WARPS, UNROLL, true, true>(work, early, stream)
                                : launch<T, ROWS, 2, WARPS, UNROLL, true, false>(work, early, stream);
  if (gated) return cudaErrorInvalidValue;
  return work.norm ? launch<T, ROWS, TILES, WARPS, UNROLL, false, true>(work, early, stream)
                   : launch<T, ROWS, TILES, WARPS, UNROLL, false, false>(work, early, stream);
}

template <typename T, int ROWS>
int shape(const Work& work, int tiles, int warps, int unroll, int gated, int early, cudaStream_t stream) {
#define SHAPE(t, w, u) if (tiles == t && warps == w && unroll == u) return pick<T, ROWS, t, w, u>(work, gated, early, stream);
  SHAPE(1, 4, 2) SHAPE(1, 4, 4) SHAPE(1, 8, 2) SHAPE(1, 8, 4) SHAPE(1, 16, 2) SHAPE(1, 16, 4)
  SHAPE(2, 4, 2) SHAPE(2, 4, 4) SHAPE(2, 8, 2) SHAPE(2, 8, 4) SHAPE(2, 16, 2)
#undef SHAPE
  return cudaErrorInvalidValue;
}

}  // namespace

// A cudaError_t. dtype: 0 bfloat16, 1 float16. early: launched so that it may start before the kernel before it has ended.
extern "C" int mini_infer_skinny(int dtype, int tiles, int warps, int unroll, int gated, int early, void* out,
                                 const void* x, const void* norm, const void* weight, const void* bias, int adds,
                                 float eps, int features, int k, int rows, long x_stride, int starts_next_early,
                                 cudaStream_t stream) {
  const Work work{out, x, norm, weight, bias, adds, eps, features, k, rows, x_stride, starts_next_early};
  if (k % 32 || rows < 1 || rows > 16) return cudaErrorInvalidValue;
  if (dtype == 0)
    return rows <= 8 ? shape<__nv_bfloat16, 8>(work, tiles, warps, unroll, gated, early, stream)
                     : shape<__nv_bfloat16, 16>(work, tiles, warps, unroll, gated, early, stream);
  return rows <= 8 ? shape<__half, 8>(work, tiles, warps, unroll, gated, early, stream)
                   : shape<__half, 16>(work, tiles, warps, unroll, gated, early, stream);
}
