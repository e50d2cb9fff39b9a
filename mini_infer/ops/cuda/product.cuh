// Tiles of a product of tens to thousands of rows, x [M, K] times a weight [N, K] transposed, in bfloat16: how operands
// come into shared memory and are multiplied there. For Hopper alone (sm_90a), whose tensor cores read operands out of
// shared memory by themselves (wgmma), and whose copy engine brings them there (TMA).
//
// One thread of a block keeps the copies going, STAGES steps of K ahead, across the tiles' ends; each of the other
// warpgroups multiplies 64 rows or 128. What an SM can draw out of the L2 cache is scarce, so two blocks (a cluster)
// work side by side on two tiles that have either their rows of x or those of the weight in common: each brings half of
// these to both.

#pragma once

#include "hopper.cuh"
#include "wgmma.cuh"

namespace {

// What a block computes at a time: WARPGROUPS x BLOCKS x 64 rows of x by WIDTH rows of the weight, half of them one
// stretch, half another. The two blocks of a cluster have either their rows of x in common or those of the weight.
template <int WARPGROUPS_, int BLOCKS_, int WIDTH_, bool SHARES_X_>
struct Tile {
  static constexpr int WARPGROUPS = WARPGROUPS_, BLOCKS = BLOCKS_, WIDTH = WIDTH_, HALF = WIDTH / 2;
  static constexpr bool SHARES_X = SHARES_X_;
  static constexpr int ROWS = WARPGROUPS * BLOCKS * 64, X_BOX = SHARES_X ? ROWS / 2 : ROWS;  // that a block brings
  // By how many instructions 64 rows are multiplied, and the sums each leaves in a thread. (The assembler wants room
  // for those of one in the registers that a block is launched with.)
  static constexpr int PARTS = WIDTH > 192 ? 2 : 1, SUMS = WIDTH / PARTS / 2;
  static constexpr int X_BYTES = ROWS * SPAN_BYTES, HALF_BYTES = HALF * SPAN_BYTES, STAGE = X_BYTES + 2 * HALF_BYTES;
  // 1,024 bytes to align the ring, the rest for barriers.
  static constexpr int STAGES = (MOST_SHARED - 2048) / STAGE, SHARED_BYTES = STAGES * STAGE + 1024;
  static constexpr int SUMMING = WARPGROUPS * 128, THREADS = SUMMING + 128;
  // A thread's, out of what the block is launched with: those that copy give most of theirs to those that sum.
  static constexpr int COPY_REGISTERS = 40, SUM_REGISTERS = WARPGROUPS == 1 ? 240 : WARPGROUPS == 2 ? 232 : 152;
  static_assert(STAGES >= 3 && HALF % 8 == 0 && X_BOX % 8 == 0, "");
  static_assert(COPY_REGISTERS + WARPGROUPS * SUM_REGISTERS <= registers_of_launch(THREADS) * (WARPGROUPS + 1),
                "setmaxnreg would wait for ever");
};

__device__ int cluster_rank() {
  int rank;
  asm volatile("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
  return rank;
}

__device__ void meet_cluster() {
  asm volatile("barrier.cluster.arrive.release.aligned;\nbarrier.cluster.wait.acquire.aligned;" ::: "memory");
}

// At the same barrier of the cluster's block `rank`. With .release.cluster it would flush what it need not.
__device__ void arrive_at(uint64_t& barrier, int rank) {
  asm volatile(
      "{.reg .b32 there;\n"
      "mapa.shared::cluster.u32 there, %0, %1;\n"
      "mbarrier.arrive.shared::cluster.b64 _, [there];}" ::"r"(shared_address(&barrier)), "r"(rank)
      : "memory");
}

DEFINE_MULTIPLY(112)
DEFINE_MULTIPLY(144)
DEFINE_MULTIPLY(192)

// Where a tile's operands are: the first of its rows of x, and of each of the two stretches of the weight.
struct Corner {
  int x, first, second;
};

// A block's ring of operands, and where it is in it.
template <class T>
struct Pipe {
  using Sums = float[T::BLOCKS * T::PARTS][T::SUMS];
  uint64_t (&full)[T::STAGES], (&empty)[T::STAGES];
  uint32_t ring;
  int rank;
  Ring<T::STAGES> at;

  // For all threads of the cluster.
  __device__ Pipe(uint64_t (&full)[T::STAGES], uint64_t (&empty)[T::STAGES], void* shared)
      : full(full), empty(empty), ring((shared_address(shared) + 1023) & ~1023u), rank(cluster_rank()) {
    if (threadIdx.x == 0) {
      for (int stage = 0; stage < T::STAGES; ++stage) {
        set_up(full[stage], 1);
        set_up(empty[stage], 2 * 4 * T::WARPGROUPS);  // the warps of both blocks: what one frees, both may write
      }
      asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
    }
    meet_cluster();
  }

  // One thread: so many steps of a tile.
  __device__ void bring(const CUtensorMap& x_map, const CUtensorMap& weight_map, const Corner& corner, int steps) {
    for (int step = 0; step < steps; ++step, at.advance()) {
      const uint32_t x = ring + at.stage * T::STAGE, weight = x + T::X_BYTES;
      uint64_t& barrier = full[at.stage];
      const int k = step * SPAN;
      wait(empty[at.stage], at.parity ^ 1);
      arrive_and_expect(barrier, T::STAGE);
      if (T::SHARES_X) {
        copy(x_map, x + rank * T::X_BYTES / 2, barrier, k, corner.x + rank * T::X_BOX, true);
        copy(weight_map, weight, barrier, k, corner.first, false);
        copy(weight_map, weight + T::HALF_BYTES, barrier, k, corner.second, false);
      } else {
        copy(x_map, x, barrier, k, corner.x, false);
        copy(weight_map, weight + rank * T::HALF_BYTES, barrier, k, rank ? corner.second : corner.first, true);
      }
    }
  }

  // A warpgroup that sums: its rows, from `first_row` of the tile on, of so many steps.
  __device__ void multiply_steps(Sums& sums, int first_row, int steps) {
    int previous = 0;
    for (int step = 0; step < steps; ++step, at.advance()) {
      const uint32_t stage = ring + at.stage * T::STAGE;
      const uint64_t x = operand(stage + first_row * SPAN_BYTES), weight = operand(stage + T::X_BYTES);
      wait(full[at.stage], at.parity);
      for (auto& part : sums) hold(part);
      begin_products();
#pragma unroll
      for (int k = 0; k < SPAN / 16; ++k)
#pragma unroll
        for (int part = 0; part < T::BLOCKS * T::PARTS; ++part)
          multiply(sums[part], x + (part / T::PARTS * 64 * SPAN_BYTES + k * 32) / 16,
                   weight + (part % T::PARTS * T::HALF_BYTES + k * 32) / 16, step | k);
      commit_products();
      for (auto& part : sums) hold(part);  // or the compiler copies sums that are not there yet
      wait_for_products<1>();
      if (step) release(previous);
      previous = at.stage;
    }
    wait_for_products<0>();
    release(previous);
    for (auto& part : sums) hold(part);
  }

 private:
  __device__ void release(int stage) {
    if (threadIdx.x % 32 < 2) arrive_at(empty[stage], threadIdx.x % 32);  // in both blocks
  }
};

}  // namespace
