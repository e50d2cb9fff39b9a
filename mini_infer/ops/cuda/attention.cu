// Causal attention of prompt chunks over a paged cache, for heads of 128 in bfloat16, on Hopper (sm_90a): what
// ops/attention_ragged.py computes. The loop is that of FlashAttention-3 (Shah et al. 2024, arXiv:2407.08608).
//
// A tile is 128 query rows: as many tokens of one sequence as fit, times the query heads of one KV head. Two warpgroups
// take 64 rows each. Of a tile of 128 keys, the product with the queries runs while the last tile's weights are
// multiplied with their values, and while one warpgroup computes weights the other has the tensor cores (they take
// turns). A warp of a third warpgroup has the copy engine bring queries and pages, two tiles of keys and two of values
// ahead. Keys go by from the last to the first, so that those that need masks come first. A block stays on its SM and
// takes whichever tile is next; heavy ones come first.

#include "hopper.cuh"

namespace {

constexpr int DIM = 128, ROWS = 128, KEYS = 128, PAGE = 64, STAGES = 2;  // PAGE: keys that lie in one page for certain
constexpr int WARPGROUPS = 2, THREADS = (WARPGROUPS + 1) * 128;
constexpr int HALF_BYTES = KEYS * SPAN_BYTES;  // 64 of the dimensions, of all keys (or rows) of a tile
constexpr int TILE_BYTES = 2 * HALF_BYTES, SHARED_BYTES = (1 + 2 * STAGES) * TILE_BYTES + 1024;
constexpr int TURN = 1, BOTH = TURN + WARPGROUPS;  // numbers of barriers among threads
constexpr int COPY_REGISTERS = 56, SUM_REGISTERS = 224;  // a thread's, as in product.cuh
static_assert(COPY_REGISTERS + WARPGROUPS * SUM_REGISTERS <= registers_of_launch(THREADS) * (WARPGROUPS + 1),
              "setmaxnreg would wait for ever");

// Of the kernel that runs; the last of its blocks makes them 0 again. Two at a time would skip tiles.
__device__ int next_tile, blocks_done;

struct Work {
  bf16* out;                // [T, heads, DIM]
  const int* cu_seqlens_q;  // [num_seqs + 1]
  const int* seq_lens;      // [num_seqs]
  const int* slots;         // [num_seqs], rows of the block table
  const int* block_table;
  int64_t table_stride;
  int first_seq, num_seqs, kv_heads, group, block_size, num_tiles;  // group: query heads of a KV head
  float scale;  // of scores, in base 2
};

// A tile of queries. Sequence b's begin at number cu_seqlens_q[b] / tokens + b, counted from the first sequence: far
// enough from the next one's for all of them, and growing with b. So some numbers have no tile.
struct Tile {
  int kv_head, seq, num_tokens;          // tokens that the tile has; 0: there is no such tile, less: nor another
  int first_token, first_position, end;  // in the batch; in its sequence; and the key after the last that it sees

  Tile() = default;
  __device__ Tile(const Work& work, int number) {  // by a whole warp
    num_tokens = -1;
    if (number >= work.num_tiles * work.kv_heads) return;
    const int tokens = ROWS / work.group, lane = threadIdx.x % 32;
    const int tile = work.num_tiles - 1 - number / work.kv_heads;  // late tokens see most keys: begin with them
    kv_head = number % work.kv_heads;
    seq = work.first_seq - 1;
    const int before = work.cu_seqlens_q[work.first_seq];
    for (int first = work.first_seq; first < work.num_seqs; first += 32) {
      const int b = first + lane;
      const bool begun = b < work.num_seqs && (work.cu_seqlens_q[b] - before) / tokens + b - work.first_seq <= tile;
      seq += __popc(__ballot_sync(~0u, begun));
    }
    const int begin = work.cu_seqlens_q[seq], count = work.cu_seqlens_q[seq + 1] - begin;
    const int start = (tile - (begin - before) / tokens - (seq - work.first_seq)) * tokens;
    num_tokens = max(0, min(tokens, count - start));
    first_token = begin + start;
    first_position = max(0, work.seq_lens[seq] - count + start);  // padding may say that it has no key
    end = first_position + num_tokens;
  }
  __device__ int key_tiles() const { return (end + KEYS - 1) / KEYS; }
};

__device__ void meet(int barrier, int threads) {
  asm volatile("bar.sync %0, %1;" ::"r"(barrier), "r"(threads) : "memory");
}
__device__ void pass(int barrier, int threads) {
  asm volatile("bar.arrive %0, %1;" ::"r"(barrier), "r"(threads) : "memory");
}

// What was written to shared memory, wgmma shall see.
__device__ void show_writes() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }

__device__ float power(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

// Of a warp's 16 rows a thread holds two: values[4 c + 2 r + i] is row lane / 4 + 8 r, column 8 c + lane % 4 * 2 + i.
using Values = float[KEYS / 2];
#define REGISTERS \
  "%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,%16,%17,%18,%19,%20,%21,%22,%23,%24,%25" \
  ",%26,%27,%28,%29,%30,%31,%32,%33,%34,%35,%36,%37,%38,%39,%40,%41,%42,%43,%44,%45,%46,%47,%48,%49" \
  ",%50,%51,%52,%53,%54,%55,%56,%57,%58,%59,%60,%61,%62,%63"
#define EIGHT(i) \
  "+f"(values[i]), "+f"(values[i + 1]), "+f"(values[i + 2]), "+f"(values[i + 3]), "+f"(values[i + 4]), \
      "+f"(values[i + 5]), "+f"(values[i + 6]), "+f"(values[i + 7])
#define SIXTY_FOUR EIGHT(0), EIGHT(8), EIGHT(16), EIGHT(24), EIGHT(32), EIGHT(40), EIGHT(48), EIGHT(56)

// values [64, KEYS] (+)= queries [64, 16] keys [KEYS, 16]^T, both in shared memory.
__device__ __forceinline__ void multiply_keys(Values& values, uint64_t queries, uint64_t keys, int adds) {
  asm volatile(
      "{.reg .pred adds;\n"
      "setp.ne.b32 adds, %66, 0;\n"
      "wgmma.mma_async.sync.aligned.m64n128k16.f32.bf16.bf16 {" REGISTERS "}, %64, %65, adds, 1, 1, 0, 0;}"
      : SIXTY_FOUR : "l"(queries), "l"(keys), "r"(adds));
}

// values [64, DIM] += weights [64, 16], in registers, times what is in shared memory as [16, DIM].
__device__ __forceinline__ void multiply_values(Values& values, const uint32_t* weights, uint64_t v) {
  asm volatile(
      "wgmma.mma_async.sync.aligned.m64n128k16.f32.bf16.bf16 {" REGISTERS "}, {%64, %65, %66, %67}, %68, 1, 1, 1, 1;"
      : SIXTY_FOUR : "r"(weights[0]), "r"(weights[1]), "r"(weights[2]), "r"(weights[3]), "l"(v));
}

// Of a thread's two rows: the highest score yet, and the sum of the weights in its own columns.
struct Softmax {
  float peak[2] = {-INFINITY, -INFINITY}, total[2] = {};

  // Scores become weights; `decay`: what earlier weights shrink by.
  __device__ void weigh(Values& scores, float scale, float (&decay)[2]) {
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      float highest = peak[r];
#pragma unroll
      for (int c = 0; c < KEYS / 8; ++c)
#pragma unroll
        for (int i = 0; i < 2; ++i) highest = fmaxf(highest, scores[4 * c + 2 * r + i]);
      highest = fmaxf(highest, __shfl_xor_sync(~0u, highest, 1));
      highest = fmaxf(highest, __shfl_xor_sync(~0u, highest, 2));
      const float base = highest == -INFINITY ? 0 : highest * scale;  // no key seen yet
      decay[r] = power(peak[r] * scale - base);
      peak[r] = highest;
      float sum = 0;
#pragma unroll
      for (int c = 0; c < KEYS / 8; ++c)
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          float& score = scores[4 * c + 2 * r + i];
          score = power(score * scale - base);
          sum += score;
        }
      total[r] = total[r] * decay[r] + sum;
    }
  }
};

// Weights as wgmma takes them from registers: of 16 keys at a time, four pairs.
__device__ void pack(const Values& weights, uint32_t (&packed)[KEYS / 4]) {
#pragma unroll
  for (int i = 0; i < KEYS / 4; ++i) {
    const __nv_bfloat162 pair = __floats2bfloat162_rn(weights[2 * i], weights[2 * i + 1]);
    packed[i] = reinterpret_cast<const uint32_t&>(pair);
  }
}

// -inf where a row does not see a key of the tile that begins at `first`.
__device__ void mask(Values& scores, int first, const int (&position)[2]) {
  const int column = first + threadIdx.x % 4 * 2;
#pragma unroll
  for (int c = 0; c < KEYS / 8; ++c)
#pragma unroll
    for (int i = 0; i < 4; ++i)
      if (column + 8 * c + i % 2 > position[i / 2]) scores[4 * c + i] = -INFINITY;
}

struct Shared {
  Tile tile[2];
  uint64_t tile_full[2], tile_empty[2], q_full, q_empty;
  uint64_t k_full[STAGES], k_empty[STAGES], v_full[STAGES], v_empty[STAGES];
};

// The warp that chooses tiles and keeps the copy engine going.
__device__ void bring(const Work& work, const CUtensorMap& q_map, const CUtensorMap& k_map, const CUtensorMap& v_map,
                      Shared& shared, uint32_t queries, uint32_t k, uint32_t v) {
  const int lane = threadIdx.x % 32;
  Ring<STAGES> at;
  Ring<2> tile_at;
  Ring<1> q_at;
  int number = blockIdx.x;
  while (true) {
    const Tile tile(work, number);
    if (lane == 0) number = gridDim.x + atomicAdd(&next_tile, 1);
    if (tile.num_tokens) {
      wait(shared.tile_empty[tile_at.stage], tile_at.parity ^ 1);
      if (lane == 0) {
        shared.tile[tile_at.stage] = tile;
        arrive(shared.tile_full[tile_at.stage]);
      }
      tile_at.advance();
    }
    if (tile.num_tokens < 0) break;
    if (tile.num_tokens && lane == 0) {
      const int* table = work.block_table + work.slots[tile.seq] * work.table_stride;
      const int last = tile.key_tiles() - 1;
      for (int step = last; step >= 0; --step, at.advance()) {
        const int pages = min(KEYS / PAGE, (tile.end - step * KEYS + PAGE - 1) / PAGE);
        int row[KEYS / PAGE];
        for (int page = 0; page < pages; ++page) {
          const int key = step * KEYS + page * PAGE;
          row[page] = (table[key / work.block_size] * work.kv_heads + tile.kv_head) * work.block_size +
                      key % work.block_size;
        }
        const auto load = [&](const CUtensorMap& map, uint64_t& full, uint64_t& empty, uint32_t target) {
          wait(empty, at.parity ^ 1);
          arrive_and_expect(full, pages * PAGE * DIM * 2);
          for (int page = 0; page < pages; ++page)
            for (int half = 0; half < 2; ++half)
              copy(map, target + half * HALF_BYTES + page * PAGE * SPAN_BYTES, full, half * SPAN, row[page]);
        };
        load(k_map, shared.k_full[at.stage], shared.k_empty[at.stage], k + at.stage * TILE_BYTES);
        if (step == last) {
          wait(shared.q_empty, q_at.parity ^ 1);
          arrive_and_expect(shared.q_full, ROWS / work.group * work.group * DIM * 2);
          for (int half = 0; half < 2; ++half)
            copy_heads(q_map, queries + half * HALF_BYTES, shared.q_full, half * SPAN, tile.kv_head * work.group,
                       tile.first_token);
          q_at.advance();
        }
        load(v_map, shared.v_full[at.stage], shared.v_empty[at.stage], v + at.stage * TILE_BYTES);
      }
    }
    number = __shfl_sync(~0u, number, 0);
  }
  __threadfence();  // this block takes no more tiles
  if (lane == 0 && atomicAdd(&blocks_done, 1) == gridDim.x - 1) next_tile = blocks_done = 0;
}

// Zeros for the values behind the sequence's end, which may be NaN: no weight of zero makes them harmless.
__device__ void clear_values(uint32_t v, int first) {
  for (int i = threadIdx.x; i < 2 * (KEYS - first) * SPAN_BYTES / 16; i += WARPGROUPS * 128) {
    const int per_half = (KEYS - first) * SPAN_BYTES / 16;
    const uint32_t address = v + i / per_half * HALF_BYTES + first * SPAN_BYTES + i % per_half * 16;
    asm volatile("st.shared.v4.u32 [%0], {%1, %1, %1, %1};" ::"r"(address), "r"(0) : "memory");
  }
  show_writes();
  meet(BOTH, WARPGROUPS * 128);
}

__device__ void attend(const Work& work, Shared& shared, uint32_t queries, uint32_t k, uint32_t v) {
  const int warpgroup = threadIdx.x / 128, lane = threadIdx.x % 32;
  const int first_row = warpgroup * 64 + threadIdx.x % 128 / 32 * 16 + lane / 4;
  const uint64_t q = operand(queries + warpgroup * 64 * SPAN_BYTES);
  const auto release = [&](uint64_t& barrier) {
    if (lane == 0) arrive(barrier);
  };
  Ring<STAGES> k_at, v_at;
  Ring<2> tile_at;
  Ring<1> q_at;
  if (warpgroup) pass(TURN, WARPGROUPS * 128);  // the first warpgroup's turn; as many stay to be taken at the end
  while (true) {
    wait(shared.tile_full[tile_at.stage], tile_at.parity);
    const Tile tile = shared.tile[tile_at.stage];
    arrive(shared.tile_empty[tile_at.stage]);
    tile_at.advance();
    if (tile.num_tokens < 0) break;
    int position[2];
    for (int r = 0; r < 2; ++r)
      position[r] = min(tile.first_position + (first_row + 8 * r) / work.group, tile.end - 1);
    Softmax softmax;
    Values scores;
    Values sums = {};
    float decay[2];
    uint32_t weights[KEYS / 4];
    const auto score = [&] {
      const uint64_t keys = operand(k + k_at.stage * TILE_BYTES);
#pragma unroll
      for (int i = 0; i < DIM / 16; ++i) {
        const int offset = (i / 4 * HALF_BYTES + i % 4 * 32) / 16;
        multiply_keys(scores, q + offset, keys + offset, i);
      }
      commit_products();
    };
    const auto add_values = [&] {
      const uint64_t values = operand(v + v_at.stage * TILE_BYTES, HALF_BYTES);
#pragma unroll
      for (int i = 0; i < KEYS / 16; ++i) multiply_values(sums, weights + 4 * i, values + i * 16 * SPAN_BYTES / 16);
      commit_products();
    };
    const int last = tile.key_tiles() - 1;
    wait(shared.q_full, q_at.parity);
    q_at.advance();
    wait(shared.k_full[k_at.stage], k_at.parity);
    begin_products();
    score();
    wait_for_products<0>();
    hold(scores);
    release(shared.k_empty[k_at.stage]);
    if (last == 0) release(shared.q_empty);
    k_at.advance();
    mask(scores, last * KEYS, position);
    softmax.weigh(scores, work.scale, decay);
    pack(scores, weights);
    wait(shared.v_full[v_at.stage], v_at.parity);
    if (tile.end < (last + 1) * KEYS) clear_values(v + v_at.stage * TILE_BYTES, tile.end - last * KEYS);
    for (int step = last - 1; step >= 0; --step) {
      wait(shared.k_full[k_at.stage], k_at.parity);
      meet(TURN + warpgroup, WARPGROUPS * 128);
      hold(scores);
      hold(sums);
      begin_products();
      score();
      wait(shared.v_full[v_at.stage], v_at.parity);
      add_values();
      pass(TURN + (warpgroup ^ 1), WARPGROUPS * 128);
      wait_for_products<1>();
      hold(scores);
      release(shared.k_empty[k_at.stage]);
      if (step == 0) release(shared.q_empty);
      k_at.advance();
      if ((step + 1) * KEYS > tile.first_position + 1) mask(scores, step * KEYS, position);
      softmax.weigh(scores, work.scale, decay);
      wait_for_products<0>();
      hold(sums);
      release(shared.v_empty[v_at.stage]);
      v_at.advance();
      pack(scores, weights);
#pragma unroll
      for (int i = 0; i < DIM / 2; ++i) sums[i] *= decay[i / 2 % 2];
    }
    wait(shared.v_full[v_at.stage], v_at.parity);
    hold(sums);
    begin_products();
    add_values();
    wait_for_products<0>();
    hold(sums);
    release(shared.v_empty[v_at.stage]);
    v_at.advance();
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      float total = softmax.total[r];
      total += __shfl_xor_sync(~0u, total, 1);
      total += __shfl_xor_sync(~0u, total, 2);
      const float inverse = 1 / total;
      const int row = first_row + 8 * r, token = row / work.group, head = tile.kv_head * work.group + row % work.group;
      bf16* out = work.out + ((int64_t)(tile.first_token + token) * work.kv_heads * work.group + head) * DIM;
#pragma unroll
      for (int c = 0; c < DIM / 8; ++c)
        if (token < tile.num_tokens)
          *reinterpret_cast<__nv_bfloat162*>(out + 8 * c + lane % 4 * 2) =
              __floats2bfloat162_rn(sums[4 * c + 2 * r] * inverse, sums[4 * c + 2 * r + 1] * inverse);
    }
  }
}

__global__ void __launch_bounds__(THREADS, 1)
    attention_kernel(const __grid_constant__ CUtensorMap q_map, const __grid_constant__ CUtensorMap k_map,
                     const __grid_constant__ CUtensorMap v_map, Work work) {
  extern __shared__ uint8_t unaligned[];
  __shared__ Shared shared;
  const uint32_t queries = (shared_address(unaligned) + 1023) & ~1023u;
  const uint32_t k = queries + TILE_BYTES, v = k + STAGES * TILE_BYTES;
  if (threadIdx.x == 0) {
    set_up(shared.q_full, 1);
    set_up(shared.q_empty, WARPGROUPS * 4);
    for (int i = 0; i < 2; ++i) {
      set_up(shared.tile_full[i], 1);
      set_up(shared.tile_empty[i], WARPGROUPS * 128);
    }
    for (int stage = 0; stage < STAGES; ++stage) {
      set_up(shared.k_full[stage], 1);
      set_up(shared.v_full[stage], 1);
      set_up(shared.k_empty[stage], WARPGROUPS * 4);
      set_up(shared.v_empty[stage], WARPGROUPS * 4);
    }
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
  }
  __syncthreads();
  if (threadIdx.x / 128 == WARPGROUPS) {
    asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(COPY_REGISTERS));
    if (threadIdx.x / 32 == WARPGROUPS * 4) bring(work, q_map, k_map, v_map, shared, queries, k, v);
  } else {
    asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(SUM_REGISTERS));
    attend(work, shared, queries, k, v);
  }
}

}  // namespace

// What went wrong, or null. q [T, heads, 128] has the strides given, in elements; the caches are [blocks, kv_heads,
// block_size, 128], dense, `cache_rows` being how many vectors one holds. Queries and caches, and the queries of each
// token and head, begin at multiples of 16 bytes. One launch at a time on a device.
extern "C" const char* mini_infer_attention(void* out, const void* q, const void* k_cache, const void* v_cache,
                                            const int* cu_seqlens_q, const int* seq_lens, const int* slots,
                                            const int* block_table, int64_t cache_rows, int64_t token_stride,
                                            int64_t head_stride, int64_t table_stride, int num_tokens, int first_seq,
                                            int num_seqs, int kv_heads, int group, int block_size, int num_tiles,
                                            float scale, int multiprocessors, cudaStream_t stream) {
  if (block_size % PAGE) return "blocks must be multiples of 64 tokens";
  if (group < 1 || group > ROWS) return "a KV head can have 128 query heads at most";
  const uint64_t size[] = {DIM, (uint64_t)kv_heads * group, (uint64_t)num_tokens};
  const uint64_t strides[] = {(uint64_t)head_stride * 2, (uint64_t)token_stride * 2};
  const uint32_t box[] = {SPAN, (uint32_t)group, (uint32_t)(ROWS / group)};
  CUtensorMap q_map, k_map, v_map;
  if (!describe<3>(&q_map, q, size, strides, box) || !describe(&k_map, k_cache, cache_rows, DIM, PAGE) ||
      !describe(&v_map, v_cache, cache_rows, DIM, PAGE))
    return "queries or caches cannot be described to the copy engine, or the driver is too old for it";
  const Work work{static_cast<bf16*>(out), cu_seqlens_q, seq_lens, slots, block_table, table_stride, first_seq,
                  num_seqs, kv_heads, group, block_size, num_tiles, scale};
  const cudaError_t allowed =  // on the current device
      cudaFuncSetAttribute(attention_kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, SHARED_BYTES);
  if (allowed != cudaSuccess) return cudaGetErrorString(allowed);
  attention_kernel<<<min(multiprocessors, num_tiles * kv_heads), THREADS, SHARED_BYTES, stream>>>(q_map, k_map, v_map,
                                                                                                  work);
  const cudaError_t error = cudaGetLastError();
  return error == cudaSuccess ? nullptr : cudaGetErrorString(error);
}
