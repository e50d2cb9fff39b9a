// What kernels for Hopper (sm_90a) share: barriers in shared memory, the copy engine (TMA), the tensor cores that run
// by themselves (wgmma). The instructions are explained in NVIDIA's PTX manual.

#pragma once

#include <cuda.h>
#include <cuda_bf16.h>
#include <cuda_runtime.h>
#include <stdint.h>

namespace {

using bf16 = __nv_bfloat16;

constexpr int SPAN = 64;  // elements of 128 bytes: as far as the swizzle goes, so a row of a box in shared memory
constexpr int SPAN_BYTES = 128;
constexpr int MOST_SHARED = 232448;  // bytes that a block may have

// What each thread of a block alone on its SM is launched with.
constexpr int registers_of_launch(int threads) { return threads > 256 ? 65536 / threads / 8 * 8 : 240; }

__device__ uint32_t shared_address(const void* pointer) { return __cvta_generic_to_shared(pointer); }

__device__ void set_up(uint64_t& barrier, int arrivals) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(shared_address(&barrier)), "r"(arrivals));
}

__device__ void wait(uint64_t& barrier, uint32_t parity) {
  asm volatile(
      "{.reg .pred done;\n"
      "again: mbarrier.try_wait.parity.shared::cta.b64 done, [%0], %1;\n"
      "@!done bra again;}" ::"r"(shared_address(&barrier)), "r"(parity) : "memory");
}

__device__ void arrive_and_expect(uint64_t& barrier, int bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(shared_address(&barrier)), "r"(bytes)
               : "memory");
}

__device__ void arrive(uint64_t& barrier) {
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(shared_address(&barrier)) : "memory");
}

// A box of the matrix that the map describes, from (row, column) on, to `target`; zeros beyond the matrix. `barrier`
// counts its bytes. `to_both`: to the same place in both blocks of the cluster, and counted by both.
__device__ void copy(const CUtensorMap& map, uint32_t target, uint64_t& barrier, int column, int row,
                     bool to_both = false) {
  const uint64_t from = reinterpret_cast<uint64_t>(&map);
  if (to_both)
    asm volatile(
        "cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes.multicast::cluster"
        " [%0], [%1, {%3, %4}], [%2], %5;"
        ::"r"(target), "l"(from), "r"(shared_address(&barrier)), "r"(column), "r"(row), "h"((uint16_t)3) : "memory");
  else
    asm volatile(
        "cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, {%3, %4}], [%2];"
        ::"r"(target), "l"(from), "r"(shared_address(&barrier)), "r"(column), "r"(row) : "memory");
}

// The same of an array of three dimensions, from (token, head, column) on.
__device__ void copy_heads(const CUtensorMap& map, uint32_t target, uint64_t& barrier, int column, int head,
                           int token) {
  asm volatile(
      "cp.async.bulk.tensor.3d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, {%3, %4, %5}], [%2];"
      ::"r"(target), "l"(reinterpret_cast<uint64_t>(&map)), "r"(shared_address(&barrier)), "r"(column), "r"(head),
      "r"(token) : "memory");
}

// How wgmma finds an operand in rows of 128 bytes that were swizzled on the way, 8 rows every 1,024 bytes. `next_span`:
// bytes to the next 64 elements of a row, where the product needs more than these (and sums over rows).
__device__ uint64_t operand(uint32_t address, int next_span = 16) {
  return (uint64_t)(address >> 4 & 0x3fff) | (uint64_t)(next_span >> 4) << 16 | (uint64_t)(1024 >> 4) << 32 |
         (uint64_t)1 << 62;
}

// Between these are wgmma instructions that run by themselves, until waited for.
__device__ void begin_products() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
__device__ void commit_products() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }

// Until no more than the last PENDING groups run.
template <int PENDING>
__device__ void wait_for_products() {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(PENDING) : "memory");
}

// What is in registers, the compiler may not move over this.
template <int COUNT>
__device__ void hold(float (&values)[COUNT]) {
#pragma unroll
  for (int i = 0; i < COUNT; ++i) asm volatile("" : "+f"(values[i])::"memory");
}

// Which place of the ring is next, and whether its barriers are in an odd round.
template <int STAGES>
struct Ring {
  int stage = 0;
  uint32_t parity = 0;
  __device__ void advance() {
    if (++stage == STAGES) {
      stage = 0;
      parity ^= 1;
    }
  }
};

// Describes an array to the copy engine, which will take boxes of such sizes, the first being SPAN. The first dimension
// is dense; `strides` are the others', in bytes.
template <int RANK>
bool describe(CUtensorMap* map, const void* array, const uint64_t (&size)[RANK], const uint64_t (&strides)[RANK - 1],
              const uint32_t (&box)[RANK]) {
  static const auto encode = [] {
    void* function = nullptr;
    cudaDriverEntryPointQueryResult found;  // asked for, not needed
    const auto error = cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &function, 12000, cudaEnableDefault,
                                                        &found);
    return error == cudaSuccess ? reinterpret_cast<decltype(&cuTensorMapEncodeTiled)>(function) : nullptr;
  }();
  uint32_t steps[RANK];
  for (uint32_t& step : steps) step = 1;
  return encode && encode(map, CU_TENSOR_MAP_DATA_TYPE_BFLOAT16, RANK, const_cast<void*>(array), size, strides, box,
                          steps, CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_128B,
                          CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE) == CUDA_SUCCESS;
}

// A dense matrix [rows, columns], in boxes of `box` rows.
bool describe(CUtensorMap* map, const void* matrix, int64_t rows, int columns, int box) {
  return describe<2>(map, matrix, {(uint64_t)columns, (uint64_t)rows}, {(uint64_t)columns * 2}, {SPAN, (uint32_t)box});
}

}  // namespace
