// SiLU(x G^T) * (x U^T) in one kernel, for the hundreds or thousands of rows of large decode steps and of prompts: x
// [M, K] and the weight [2N, K], G over U, in bfloat16. For Hopper alone (sm_90a), whose tensor cores read operands out
// of shared memory by themselves (wgmma), and whose copy engine brings them there (TMA).
//
// What a library's product cannot know saves the time: the gate is applied to the sums while they are in registers, and
// a tile may be as wide as divides the outputs evenly among the SMs. Half of a tile's columns are of G, half of U, so
// that the thread that holds an element of one holds its partner too.
//
// A block stays on its SM and takes tile after tile. One thread keeps the copies going, STAGES steps of K ahead, across
// the tiles' ends; each of the other warpgroups multiplies 64 rows or 128. Two blocks (a cluster) work side by side on
// two tiles that have either their rows of x or those of the weight in common: each brings half of these to both.

#include "hopper.cuh"

namespace {

// A tile: WARPGROUPS x BLOCKS x 64 rows of x by WIDTH rows of the weight, half of them gates.
template <int WARPGROUPS_, int BLOCKS_, int WIDTH_, bool SHARES_X_>
struct Tile {
  static constexpr int WARPGROUPS = WARPGROUPS_, BLOCKS = BLOCKS_, WIDTH = WIDTH_, HALF = WIDTH / 2;
  static constexpr bool SHARES_X = SHARES_X_;  // else the two blocks of a cluster share the weights
  static constexpr int ROWS = WARPGROUPS * BLOCKS * 64, SUMS = WIDTH / 2;
  static constexpr int X_BYTES = ROWS * SPAN_BYTES, WEIGHT_BYTES = WIDTH * SPAN_BYTES, STAGE = X_BYTES + WEIGHT_BYTES;
  // 1,024 bytes to align the ring, the rest for barriers.
  static constexpr int STAGES = (MOST_SHARED - 2048) / STAGE, SHARED_BYTES = STAGES * STAGE + 1024;
  static constexpr int THREADS = (WARPGROUPS + 1) * 128;
  // A thread's, out of what the block is launched with: those that copy give most of theirs to those that sum.
  static constexpr int COPY_REGISTERS = WARPGROUPS == 2 ? 40 : 32, SUM_REGISTERS = WARPGROUPS == 2 ? 232 : 160;
  static_assert(STAGES >= 3 && HALF % 8 == 0, "");
  static_assert(COPY_REGISTERS + WARPGROUPS * SUM_REGISTERS <= registers_of_launch(THREADS) * (WARPGROUPS + 1),
                "setmaxnreg would wait for ever");
};

struct Work {
  bf16* out;  // [M, N]
  int rows, features, k;
  int row_tiles, pairs;  // pairs of tiles, one for each cluster at a time
};

__device__ int cluster_rank() {
  int rank;
  asm volatile("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
  return rank;
}

__device__ void meet_cluster() {
  asm volatile("barrier.cluster.arrive.release.aligned;\nbarrier.cluster.wait.acquire.aligned;" ::: "memory");
}

// At the same barrier of the cluster's block `rank`.
__device__ void arrive_at(uint64_t& barrier, int rank) {  // with .release.cluster it would flush what it need not
  asm volatile(
      "{.reg .b32 there;\n"
      "mapa.shared::cluster.u32 there, %0, %1;\n"
      "mbarrier.arrive.shared::cluster.b64 _, [there];}" ::"r"(shared_address(&barrier)), "r"(rank)
      : "memory");
}

// sums [64, WIDTH] (+)= x [64, 16] weight [WIDTH, 16]^T, both in shared memory. Of a warp's 16 rows a thread holds two:
// sums[4 c + 2 r + i] is row lane / 4 + 8 r, column 8 c + lane % 4 * 2 + i. The instruction's name holds the width; its
// inputs are declared as outputs so that they are numbered before the sums.
#define REGISTERS_112 \
  "%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,%16,%17,%18,%19,%20,%21,%22,%23,%24,%25,%26,%27,%28,%29" \
  ",%30,%31,%32,%33,%34,%35,%36,%37,%38,%39,%40,%41,%42,%43,%44,%45,%46,%47,%48,%49,%50,%51,%52,%53,%54" \
  ",%55,%56,%57,%58"
#define REGISTERS_144 REGISTERS_112 \
  ",%59,%60,%61,%62,%63,%64,%65,%66,%67,%68,%69,%70,%71,%72,%73,%74"
#define REGISTERS_192 REGISTERS_144 \
  ",%75,%76,%77,%78,%79,%80,%81,%82,%83,%84,%85,%86,%87,%88,%89,%90,%91,%92,%93,%94,%95,%96,%97,%98"
#define EIGHT(i) \
  "+f"(sums[i]), "+f"(sums[i + 1]), "+f"(sums[i + 2]), "+f"(sums[i + 3]), "+f"(sums[i + 4]), "+f"(sums[i + 5]), \
      "+f"(sums[i + 6]), "+f"(sums[i + 7])
#define SUMS_112 EIGHT(0), EIGHT(8), EIGHT(16), EIGHT(24), EIGHT(32), EIGHT(40), EIGHT(48)
#define SUMS_144 SUMS_112, EIGHT(56), EIGHT(64)
#define SUMS_192 SUMS_144, EIGHT(72), EIGHT(80), EIGHT(88)
#define DEFINE_MULTIPLY(WIDTH)                                                                                \
  __device__ __forceinline__ void multiply(float (&sums)[WIDTH / 2], uint64_t x, uint64_t weight, int adds) { \
    asm volatile(                                                                                             \
        "{.reg .pred adds;\n"                                                                                 \
        "setp.ne.b32 adds, %2, 0;\n"                                                                          \
        "wgmma.mma_async.sync.aligned.m64n" #WIDTH "k16.f32.bf16.bf16 {" REGISTERS_##WIDTH                    \
        "}, %0, %1, adds, 1, 1, 0, 0;}"                                                                       \
        : "+l"(x), "+l"(weight), "+r"(adds), SUMS_##WIDTH);                                                   \
  }
DEFINE_MULTIPLY(112)
DEFINE_MULTIPLY(144)
DEFINE_MULTIPLY(192)

template <class T>
struct Place {
  int row, column;  // of the tile's first output
  __device__ Place(const Work& work, int pair, int rank) {
    const int row_steps = T::SHARES_X ? work.row_tiles : (work.row_tiles + 1) / 2;  // neighbours share weights in L2
    const int row_tile = pair % row_steps, column_tile = pair / row_steps;
    row = (T::SHARES_X ? row_tile : row_tile * 2 + rank) * T::ROWS;
    column = (T::SHARES_X ? column_tile * 2 + rank : column_tile) * T::HALF;
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
__device__ void write(const float (&sums)[T::BLOCKS][T::SUMS], const Work& work, const Place<T>& place, int first_row) {
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
          const float gate = sums[block][4 * c + 2 * r + i], up = sums[block][T::SUMS / 2 + 4 * c + 2 * r + i];
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
  const uint32_t ring = (shared_address(unaligned) + 1023) & ~1023u;
  const int rank = cluster_rank(), warpgroup = threadIdx.x / 128, lane = threadIdx.x % 32;
  const int steps = (work.k + SPAN - 1) / SPAN, clusters = gridDim.x / 2;
  if (threadIdx.x == 0) {
    for (int stage = 0; stage < T::STAGES; ++stage) {
      set_up(full[stage], 1);
      set_up(empty[stage], 2 * 4 * T::WARPGROUPS);  // the warps of both blocks: what one frees, both may write
    }
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
  }
  meet_cluster();
  Ring<T::STAGES> at;
  if (warpgroup == T::WARPGROUPS) {
    asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(T::COPY_REGISTERS));
    if (threadIdx.x == T::WARPGROUPS * 128) {
      for (int pair = blockIdx.x / 2; pair < work.pairs; pair += clusters) {
        const Place<T> place(work, pair, rank);
        for (int step = 0; step < steps; ++step, at.advance()) {
          const uint32_t x = ring + at.stage * T::STAGE, gate = x + T::X_BYTES, up = gate + T::WEIGHT_BYTES / 2;
          uint64_t& barrier = full[at.stage];
          const int k = step * SPAN;
          wait(empty[at.stage], at.parity ^ 1);
          arrive_and_expect(barrier, T::STAGE);
          if (T::SHARES_X) {
            copy(x_map, x + rank * T::X_BYTES / 2, barrier, k, place.row + rank * T::ROWS / 2, true);
            copy(weight_map, gate, barrier, k, place.column, false);
            copy(weight_map, up, barrier, k, work.features + place.column, false);
          } else {
            copy(x_map, x, barrier, k, place.row, false);
            copy(weight_map, rank ? up : gate, barrier, k, rank * work.features + place.column, true);
          }
        }
      }
    }
    __syncwarp();
  } else {
    asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(T::SUM_REGISTERS));
    const int first_row = warpgroup * T::BLOCKS * 64;
    const auto release = [&](int stage) {
      if (lane < 2) arrive_at(empty[stage], lane);  // in both blocks
    };
    for (int pair = blockIdx.x / 2; pair < work.pairs; pair += clusters) {
      float sums[T::BLOCKS][T::SUMS];
      int previous = 0;
      for (int step = 0; step < steps; ++step, at.advance()) {
        const uint32_t stage = ring + at.stage * T::STAGE;
        const uint64_t x = operand(stage + first_row * SPAN_BYTES), weight = operand(stage + T::X_BYTES);
        wait(full[at.stage], at.parity);
        for (auto& block : sums) hold(block);
        begin_products();
#pragma unroll
        for (int k = 0; k < SPAN / 16; ++k)
#pragma unroll
          for (int block = 0; block < T::BLOCKS; ++block)
            multiply(sums[block], x + (block * 64 * SPAN_BYTES + k * 32) / 16, weight + k * 32 / 16, step | k);
        commit_products();
        for (auto& block : sums) hold(block);  // or the compiler copies sums that are not there yet
        wait_for_products<1>();
        if (step) release(previous);
        previous = at.stage;
      }
      wait_for_products<0>();
      release(previous);
      for (auto& block : sums) hold(block);
      write<T>(sums, work, Place<T>(work, pair, rank), first_row);
    }
  }
  meet_cluster();  // the other block may still write here
}

template <class T>
const char* launch(Work work, const void* x, const void* weight, int multiprocessors, cudaStream_t stream) {
  CUtensorMap x_map, weight_map;
  if (!describe(&x_map, x, work.rows, work.k, T::SHARES_X ? T::ROWS / 2 : T::ROWS) ||
      !describe(&weight_map, weight, 2 * work.features, work.k, T::HALF))
    return "the operands cannot be described to the copy engine, or the driver is too old for it";
  work.row_tiles = (work.rows + T::ROWS - 1) / T::ROWS;
  const int column_tiles = (work.features + T::HALF - 1) / T::HALF;
  work.pairs = T::SHARES_X ? work.row_tiles * ((column_tiles + 1) / 2) : (work.row_tiles + 1) / 2 * column_tiles;
  const int clusters = min(work.pairs, multiprocessors / 2);
  swiglu_kernel<T><<<2 * clusters, T::THREADS, T::SHARED_BYTES, stream>>>(x_map, weight_map, work);
  const cudaError_t error = cudaGetLastError();
  return error == cudaSuccess ? nullptr : cudaGetErrorString(error);
}

// Lets kernels have their shared memory, on the current device. That also loads them: all at once, lest a request wait
// for one later.
template <class... T>
cudaError_t allow() {
  cudaError_t error = cudaSuccess;
  ((error = error == cudaSuccess ? cudaFuncSetAttribute(swiglu_kernel<T>, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                                        T::SHARED_BYTES) : error), ...);
  return error;
}

using Narrow = Tile<2, 2, 112, true>;
using Middle = Tile<2, 2, 144, true>;
using Wide = Tile<2, 2, 192, true>;
using Low = Tile<3, 1, 192, false>;

}  // namespace

// What went wrong, or null. x [rows, k], weight [2 features, k] and out [rows, features] are dense; k and features are
// multiples of 8; all begin at multiples of 16 bytes. The tile is one of those that ops/cuda_swiglu.py chooses from.
extern "C" const char* mini_infer_swiglu(int tile_rows, int tile_width, void* out, const void* x, const void* weight,
                                         int rows, int features, int k, int multiprocessors, cudaStream_t stream) {
  const Work work{static_cast<bf16*>(out), rows, features, k};
  if (rows < 1) return "there must be a row";
  if (features < 8 || features % 8 || k < 8 || k % 8) return "N and K must be multiples of 8";
  const cudaError_t error = allow<Narrow, Middle, Wide, Low>();
  if (error != cudaSuccess) return cudaGetErrorString(error);
  const auto is = [&](int rows, int width) { return tile_rows == rows && tile_width == width; };
  if (is(256, 112)) return launch<Narrow>(work, x, weight, multiprocessors, stream);
  if (is(256, 144)) return launch<Middle>(work, x, weight, multiprocessors, stream);
  if (is(256, 192)) return launch<Wide>(work, x, weight, multiprocessors, stream);
  if (is(192, 192)) return launch<Low>(work, x, weight, multiprocessors, stream);
  return "no such tile";
}
