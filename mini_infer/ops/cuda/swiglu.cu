// SiLU(x G^T) * (x U^T) in one kernel: x [M, K] and the weight [2N, K], G over U, in bfloat16. For Hopper alone.
//
// What a library's product cannot know saves the time: the gate is applied to the sums while they are in registers, and
// a tile may be as wide as divides the outputs evenly among the SMs. Half of a tile's columns are of G, half of U, so
// that the thread that holds an element of one holds its partner too. A block stays on its SM and takes tile after tile.

#include "product.cuh"

namespace {

struct Work {
  bf16* out;  // [M, N]
  int rows, features, k;
  int row_pairs, pairs;  // of tiles, a pair for each cluster at a time
};

template <class T>
struct Place {
  int row, column;  // of the tile's first output
  __device__ Place(const Work& work, int pair, int rank) {
    const int row_pair = pair % work.row_pairs, column_pair = pair / work.row_pairs;  // neighbours share weights in L2
    row = (T::SHARES_X ? row_pair : row_pair * 2 + rank) * T::ROWS;
    column = (T::SHARES_X ? column_pair * 2 + rank : column_pair) * T::HALF;
  }
};

__device__ float sigmoid(float x) {
  float power, inverse;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(power) : "f"(x * -1.44269504f));  // without care for what is nearly zero
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(inverse) : "f"(1 + power));
  return inverse;
}

// SiLU(gate) * up, rounded, to where it belongs. Nothing branches: there are two warps to a scheduler, so the next
// elements have to hide the latency of one.
template <class T>
__device__ void write(const typename Pipe<T>::Sums& sums, const Work& work, const Place<T>& place, int first_row) {
  const int row = place.row + first_row + threadIdx.x % 128 / 32 * 16 + threadIdx.x % 32 / 4;
  const int columns = work.features - place.column;
  bf16* const corner = work.out + place.column + threadIdx.x % 4 * 2;
#pragma unroll
  for (int block = 0; block < T::BLOCKS; ++block)
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const int at = row + block * 64 + r * 8;
      const bool inside = at < work.rows;
      bf16* const out = corner + (int64_t)at * work.features;
#pragma unroll
      for (int c = 0; c < T::HALF / 8; ++c) {
        float y[2];
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          const int part = block * T::PARTS, at = 4 * c + 2 * r + i;
          const float gate = sums[part][at];
          const float up = T::PARTS == 2 ? sums[part + 1][at] : sums[part][T::SUMS / 2 + at];
          y[i] = gate * sigmoid(gate) * up;  // in this order, nothing overflows that is damped
        }
        const __nv_bfloat162 pair = __floats2bfloat162_rn(y[0], y[1]);
        if (inside && c * 8 < columns) *reinterpret_cast<__nv_bfloat162*>(out + c * 8) = pair;
      }
    }
}

template <class T>
__global__ void __cluster_dims__(2) __launch_bounds__(T::THREADS, 1)
    swiglu_kernel(const __grid_constant__ CUtensorMap x_map, const __grid_constant__ CUtensorMap weight_map,
                  Work work) {
  extern __shared__ uint8_t unaligned[];
  __shared__ uint64_t full[T::STAGES], empty[T::STAGES];
  Pipe<T> pipe(full, empty, unaligned);
  const int steps = (work.k + SPAN - 1) / SPAN, clusters = gridDim.x / 2, warpgroup = threadIdx.x / 128;
  int pair = blockIdx.x / 2;
  if (warpgroup == T::WARPGROUPS) {
    asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(T::COPY_REGISTERS));
    if (threadIdx.x == T::SUMMING) {
      for (; pair < work.pairs; pair += clusters) {
        const Place<T> place(work, pair, pipe.rank);
        pipe.bring(x_map, weight_map, {place.row, place.column, work.features + place.column}, steps);
      }
    }
    __syncwarp();
  } else {
    asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(T::SUM_REGISTERS));
    const int first_row = warpgroup * T::BLOCKS * 64;
    for (; pair < work.pairs; pair += clusters) {
      typename Pipe<T>::Sums sums;
      pipe.multiply_steps(sums, first_row, steps);
      write<T>(sums, work, Place<T>(work, pair, pipe.rank), first_row);
    }
  }
  meet_cluster();  // the other block may still write here
}

template <class T>
const char* launch(Work work, const void* x, const void* weight, int multiprocessors, cudaStream_t stream) {
  CUtensorMap x_map, weight_map;
  if (!describe(&x_map, x, work.rows, work.k, T::X_BOX) ||
      !describe(&weight_map, weight, 2 * work.features, work.k, T::HALF))
    return "the operands cannot be described to the copy engine, or the driver is too old for it";
  const auto tiles = [](int size, int each) { return (size + each - 1) / each; };
  work.row_pairs = tiles(work.rows, T::SHARES_X ? T::ROWS : 2 * T::ROWS);
  work.pairs = work.row_pairs * tiles(work.features, T::SHARES_X ? 2 * T::HALF : T::HALF);
  const int clusters = min(work.pairs, multiprocessors / 2);
  swiglu_kernel<T><<<2 * clusters, T::THREADS, T::SHARED_BYTES, stream>>>(x_map, weight_map, work);
  const cudaError_t error = cudaGetLastError();
  return error == cudaSuccess ? nullptr : cudaGetErrorString(error);
}

// The tiles that this is compiled for, those that ops/cuda_swiglu.py chooses from.
template <class... T>
struct Tiles {
  static cudaError_t prepare() {
    cudaError_t error = cudaSuccess;
    ((error = error == cudaSuccess ? cudaFuncSetAttribute(swiglu_kernel<T>, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                                          T::SHARED_BYTES) : error), ...);
    return error;
  }
  static const char* launch_one(int rows, int width, bool shares_x, const Work& work, const void* x,
                                const void* weight, int multiprocessors, cudaStream_t stream) {
    const char* answer = "no such tile";
    ((T::ROWS == rows && T::WIDTH == width && T::SHARES_X == shares_x &&
      (answer = launch<T>(work, x, weight, multiprocessors, stream), true)) || ...);
    return answer;
  }
};
using AllTiles = Tiles<Tile<1, 1, 144, true>, Tile<1, 1, 192, true>, Tile<1, 1, 224, true>, Tile<2, 1, 144, true>,
                       Tile<2, 1, 192, true>, Tile<2, 1, 224, true>, Tile<3, 1, 144, true>, Tile<3, 1, 192, true>,
                       Tile<3, 1, 224, true>, Tile<2, 2, 112, true>, Tile<2, 2, 144, true>, Tile<2, 2, 192, true>,
                       Tile<3, 1, 192, false>, Tile<3, 1, 224, false>>;

}  // namespace

// Both return what went wrong, or null.

// To be called once for each device, while it is current: lets the kernels have their shared memory. That also loads
// them, all at once, lest a request wait for one later.
extern "C" const char* mini_infer_swiglu_prepare() {
  const cudaError_t error = AllTiles::prepare();
  return error == cudaSuccess ? nullptr : cudaGetErrorString(error);
}

// x [rows, k], weight [2 features, k] and out [rows, features] are dense; k and features are multiples of 8; all begin
// at multiples of 16 bytes.
extern "C" const char* mini_infer_swiglu(int tile_rows, int tile_width, bool shares_x, void* out, const void* x,
                                         const void* weight, int rows, int features, int k, int multiprocessors,
                                         cudaStream_t stream) {
  const Work work{static_cast<bf16*>(out), rows, features, k};
  if (rows < 1) return "there must be a row";
  if (features < 8 || features % 8 || k < 8 || k % 8) return "N and K must be multiples of 8";
  return AllTiles::launch_one(tile_rows, tile_width, shares_x, work, x, weight, multiprocessors, stream);
}
