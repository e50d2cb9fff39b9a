// The small operators of a decode step on a CPU, each as one pass over its data.
//
// With a few rows, a torch operator costs more to call than to compute, and the reference of RMSNorm alone takes seven.
// These functions are called from ops/native.py with addresses and sizes; they run on the calling thread, compute in
// float32 and round once. Shapes and meanings are those of the references in ops/norm.py, activation.py, kv_write.py and
// attention.py, skinny.py. Compilers turn the loops into vector code for the machine that they run on.

#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <type_traits>
#include <vector>

namespace {

// ---- elements: float32 and bfloat16 ----------------------------------------------------------------------------------

struct bfloat16 {
  uint16_t bits;
};

inline float load(float x) { return x; }

inline float load(bfloat16 x) {
  uint32_t bits = uint32_t(x.bits) << 16;
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

inline void store(float* target, float x) { *target = x; }

inline void store(bfloat16* target, float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, sizeof bits);
  uint32_t rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;  // to nearest, ties to even
  target->bits = uint16_t(x != x ? 0x7fc0 : rounded);             // rounding could carry a NaN over to infinity
}

// Sixteen float32 at a time; compilers split what their machine has no registers for.
constexpr int64_t LANES = 16;
typedef float vector __attribute__((vector_size(4 * LANES)));

inline vector load_vector(const void* source) {
  vector value;
  std::memcpy(&value, source, sizeof value);
  return value;
}

// Keeps a value in a register: compilers would rather read the same memory again in every instruction that needs it.
template <class V>
inline V held(V value) {
#ifdef __AVX512F__
  __asm__("" : "+v"(value));
#endif
  return value;
}

// Float scratch that vector loads find aligned.
struct alignas(64) Line {
  float values[LANES];
};

struct Scratch {
  std::vector<Line> lines;
  explicit Scratch(int64_t size) : lines((size + LANES - 1) / LANES) {}
  float* data() { return lines.data()->values; }
};

inline float sum(vector value) {
  typedef float half __attribute__((vector_size(2 * LANES)));
  typedef float quarter __attribute__((vector_size(LANES)));
  half low, high;
  std::memcpy(&low, &value, sizeof low);
  std::memcpy(&high, reinterpret_cast<char*>(&value) + sizeof low, sizeof high);
  low += high;
  quarter left, right;
  std::memcpy(&left, &low, sizeof left);
  std::memcpy(&right, reinterpret_cast<char*>(&low) + sizeof left, sizeof right);
  left += right;
  return (left[0] + left[1]) + (left[2] + left[3]);
}

// A stretch is 32 elements as two vectors. Of bfloat16 they come as its even and its odd elements, since a shift or a
// mask of each 32-bit word gives those; float32 operands that meet them are laid out likewise, by `place`.
constexpr int64_t STRETCH = 2 * LANES;

struct Stretch {
  vector first, second;
};

inline Stretch load_stretch(const float* source) { return {load_vector(source), load_vector(source + LANES)}; }

inline Stretch load_stretch(const bfloat16* source) {
  typedef uint32_t words __attribute__((vector_size(4 * LANES)));
  const words pairs = held((words)load_vector(source));
  return {(vector)(pairs << 16), (vector)(pairs & 0xffff0000u)};
}

template <class T>
inline int64_t place(int64_t i) {
  if (sizeof(T) == 4) return i;
  return i / STRETCH * STRETCH + i % 2 * LANES + i % STRETCH / 2;
}

// e^x with a relative error of 2e-7, in a form that loops vectorise. Below -87 it is 0 or nearly so; NaN stays NaN.
inline float exponential(float x) {
  float y = x * 1.44269504f;
  y = y < -126.f ? -126.f : y;
  y = y > 127.f ? 127.f : y;
  float whole = std::floor(y);
  float f = y - whole;
  float p = 1.8775767e-3f;  // a minimax polynomial of 2^f on [0, 1)
  p = p * f + 8.9893397e-3f;
  p = p * f + 5.5826318e-2f;
  p = p * f + 2.4015361e-1f;
  p = p * f + 6.9315308e-1f;
  p = p * f + 9.9999994e-1f;
  uint32_t exponent = (uint32_t(int32_t(whole)) + 127u) << 23;
  float scale;
  std::memcpy(&scale, &exponent, sizeof scale);
  return p * scale;
}

// ---- RMSNorm ---------------------------------------------------------------------------------------------------------

template <class T>
inline float inverse_rms(const T* x, int64_t size, float eps) {
  float sum = 0.f;
#pragma omp simd reduction(+ : sum)
  for (int64_t i = 0; i < size; i++) sum += load(x[i]) * load(x[i]);
  return 1.f / std::sqrt(sum / float(size) + eps);
}

template <class T>
void rms_norm(T* out, const T* x, const T* weight, int64_t rows, int64_t size, float eps) {
  for (int64_t row = 0; row < rows; row++, x += size, out += size) {
    const float scale = inverse_rms(x, size, eps);
#pragma omp simd
    for (int64_t i = 0; i < size; i++) store(out + i, load(x[i]) * scale * load(weight[i]));
  }
}

// ---- SiLU(gate) * up -------------------------------------------------------------------------------------------------

inline float silu(float x) { return x / (1.f + exponential(-x)); }

template <class T>
void silu_and_mul(T* out, const T* x, int64_t rows, int64_t size) {
  for (int64_t row = 0; row < rows; row++, x += 2 * size, out += size) {
#pragma omp simd
    for (int64_t i = 0; i < size; i++) store(out + i, silu(load(x[i])) * load(x[size + i]));
  }
}

// ---- QK-norm, RoPE and the cache write -------------------------------------------------------------------------------

struct Heads {
  int64_t queries, kv, size;  // query heads, KV heads, elements of a head
};

// One head: normalised if there is a weight, then rotated; cos_sin holds half cosines, half sines.
template <class T>
inline void rotate_head(T* out, const T* x, const T* weight, const float* cos_sin, int64_t size, float eps) {
  const int64_t half = size / 2;
  const float scale = weight ? inverse_rms(x, size, eps) : 1.f;
#pragma omp simd
  for (int64_t i = 0; i < half; i++) {
    float left = load(x[i]) * scale, right = load(x[half + i]) * scale;
    if (weight) {
      left *= load(weight[i]);
      right *= load(weight[half + i]);
    }
    store(out + i, left * cos_sin[i] - right * cos_sin[half + i]);
    store(out + half + i, right * cos_sin[i] + left * cos_sin[half + i]);
  }
}

template <class T>
void qkv_to_cache(T* q, T* k_cache, T* v_cache, const T* qkv, const int32_t* positions, const int32_t* slots,
                  const float* table, const T* q_norm, const T* k_norm, int64_t tokens, Heads heads,
                  int64_t block_size, float eps) {
  const int64_t size = heads.size;
  for (int64_t token = 0; token < tokens; token++) {
    const float* cos_sin = table + positions[token] * size;
    for (int64_t head = 0; head < heads.queries; head++, qkv += size, q += size)
      rotate_head(q, qkv, q_norm, cos_sin, size, eps);
    const int64_t block = slots[token] / block_size, place = slots[token] % block_size;
    for (int64_t head = 0; head < heads.kv; head++, qkv += size) {
      const int64_t target = ((block * heads.kv + head) * block_size + place) * size;
      rotate_head(k_cache + target, qkv, k_norm, cos_sin, size, eps);
      std::memcpy(v_cache + target, qkv + heads.kv * size, size * sizeof(T));
    }
    qkv += heads.kv * size;
  }
}

// ---- products with one row --------------------------------------------------------------------------------------------

// What is folded into a product, as in ops/skinny.py: null pointers are absent.
template <class T>
struct Epilogue {
  const T *norm, *bias, *residual;
  bool gated;  // the weight is gate over up; the result is SiLU(gate) * up
  float eps;
};

constexpr int64_t AHEAD = 2048;  // elements: what lies that far is asked for, so that it has come when its turn does

// Dots of FEATURES rows of the weight with x, which is laid out by `place`; size is a multiple of STRETCH.
template <int FEATURES, class T>
inline void dots(float* out, const float* x, const T* weight, int64_t size) {
  vector sums[FEATURES] = {};
  for (int64_t i = 0; i < size; i += STRETCH) {
    const Stretch part{held(load_vector(x + i)), held(load_vector(x + i + LANES))};
    for (int j = 0; j < FEATURES; j++) {
      __builtin_prefetch(weight + j * size + i + AHEAD);
      const Stretch w = load_stretch(weight + j * size + i);
      sums[j] += part.first * w.first;
      sums[j] += part.second * w.second;
    }
  }
  for (int j = 0; j < FEATURES; j++) out[j] = sum(sums[j]);
}

template <class T>
void one_row_matmul(T* out, const T* x, const T* weight, int64_t features, int64_t size, const Epilogue<T>& epilogue) {
  const int64_t width = epilogue.gated ? 2 * features : features;
  Scratch input_lines(size), result_lines(width);
  float *input = input_lines.data(), *result = result_lines.data();
  const float scale = epilogue.norm ? inverse_rms(x, size, epilogue.eps) : 1.f;
  for (int64_t i = 0; i < size; i++)
    input[place<T>(i)] = load(x[i]) * scale * (epilogue.norm ? load(epilogue.norm[i]) : 1.f);
  int64_t feature = 0;
  for (; feature + 4 <= width; feature += 4) dots<4>(result + feature, input, weight + feature * size, size);
  for (; feature < width; feature++) dots<1>(result + feature, input, weight + feature * size, size);
  if (epilogue.bias)
    for (int64_t i = 0; i < width; i++) result[i] += load(epilogue.bias[i]);
  if (epilogue.gated) {
#pragma omp simd
    for (int64_t i = 0; i < features; i++) result[i] = silu(result[i]) * result[features + i];
  }
  if (epilogue.residual)
    for (int64_t i = 0; i < features; i++) result[i] += load(epilogue.residual[i]);
  for (int64_t i = 0; i < features; i++) store(out + i, result[i]);
}

// ---- paged attention -------------------------------------------------------------------------------------------------

// The keys first .. end - 1 of one sequence and KV head in a cache [blocks, kv heads, block_size, size].
struct Keys {
  const int32_t* blocks;  // of the sequence
  int64_t kv_head, kv_heads, block_size, size, first, end;
  int64_t count() const { return end - first; }

  template <class T>
  const T* page(const T* cache, int64_t block) const {
    return cache + (blocks[block] * kv_heads + kv_head) * block_size * size;
  }

  // visit(key - first, its vector) for each key in order. Pages lie anywhere, so while one is read the next is asked for.
  template <class T, class Visit>
  void each(const T* cache, Visit visit) const {
    for (int64_t key = first; key < end;) {
      const int64_t block = key / block_size, stop = std::min(end, (block + 1) * block_size);
      const T* next = (block + 1) * block_size < end ? page(cache, block + 1) : nullptr;
      const T* current = page(cache, block);
      for (int64_t offset = key % block_size * size; key < stop; key++, offset += size) {
        if (next)
          for (int64_t i = 0; i < size; i += 64 / sizeof(T)) __builtin_prefetch(next + offset + i);
        visit(key - first, current + offset);
      }
    }
  }
};

// GROUP query heads of one KV head. q and out are [GROUP, PARTS * STRETCH], laid out by `place`; scores is scratch for
// GROUP times the keys. What is summed over keys stays in registers.
template <int GROUP, int PARTS, class T>
void attend(float* out, const float* q, const T* k_cache, const T* v_cache, const Keys& keys, float* scores) {
  const int64_t size = PARTS * STRETCH, count = keys.count();
  keys.each(k_cache, [&](int64_t key, const T* k) {
    vector sums[GROUP] = {};
    for (int part = 0; part < PARTS; part++) {
      const Stretch a = load_stretch(k + part * STRETCH);
      for (int g = 0; g < GROUP; g++) {
        const Stretch b = load_stretch(q + g * size + part * STRETCH);
        sums[g] += a.first * b.first;
        sums[g] += a.second * b.second;
      }
    }
    for (int g = 0; g < GROUP; g++) scores[g * count + key] = sum(sums[g]);
  });
  for (int g = 0; g < GROUP; g++) {
    float* row = scores + g * count;
    float peak = row[0], total = 0.f;
#pragma omp simd reduction(max : peak)
    for (int64_t i = 0; i < count; i++) peak = row[i] > peak ? row[i] : peak;
#pragma omp simd reduction(+ : total)
    for (int64_t i = 0; i < count; i++) total += row[i] = exponential(row[i] - peak);
    const float scale = 1.f / total;
#pragma omp simd
    for (int64_t i = 0; i < count; i++) row[i] *= scale;
  }
  Stretch sums[GROUP][PARTS] = {};
  keys.each(v_cache, [&](int64_t key, const T* v) {
    for (int part = 0; part < PARTS; part++) {
      const Stretch piece = load_stretch(v + part * STRETCH);
      for (int g = 0; g < GROUP; g++) {
        const float weight = scores[g * count + key];
        sums[g][part].first += weight * piece.first;
        sums[g][part].second += weight * piece.second;
      }
    }
  });
  std::memcpy(out, sums, sizeof sums);
}

// All query heads of a KV head, in groups that fit the registers.
template <int PARTS, class T>
void attend_heads(float* out, const float* q, const T* k_cache, const T* v_cache, const Keys& keys, int64_t heads,
                  float* scores) {
  constexpr int GROUP = PARTS <= 2 ? 4 : 2;
  const int64_t size = PARTS * STRETCH;
  int64_t head = 0;
  for (; head + GROUP <= heads; head += GROUP)
    attend<GROUP, PARTS>(out + head * size, q + head * size, k_cache, v_cache, keys, scores);
  for (; head < heads; head++)
    attend<1, PARTS>(out + head * size, q + head * size, k_cache, v_cache, keys, scores);
}

template <int PARTS, class T>
void paged_attention(T* out, const T* q, const T* k_cache, const T* v_cache, const int32_t* cu_seqlens_q,
                     const int32_t* seq_lens, const int32_t* slots, const int32_t* block_table, int64_t num_seqs,
                     int64_t q_stride, int64_t table_stride, Heads heads, int64_t block_size, int64_t window,
                     float scale) {
  const int64_t group = heads.queries / heads.kv, width = group * heads.size;
  Scratch query_lines(width), result_lines(width);
  float *query = query_lines.data(), *result = result_lines.data();
  std::vector<float> scores;
  for (int64_t seq = 0; seq < num_seqs; seq++) {
    const int64_t begin = cu_seqlens_q[seq], count = cu_seqlens_q[seq + 1] - begin;
    const int64_t length = std::max<int64_t>(seq_lens[seq], count);  // a padding sequence may say 0
    scores.resize(4 * length);
    for (int64_t kv_head = 0; kv_head < heads.kv; kv_head++) {
      for (int64_t token = begin; token < begin + count; token++) {
        const int64_t end = length - (begin + count - token) + 1;
        const int64_t first = window > 0 ? std::max<int64_t>(0, end - window) : 0;
        const Keys keys{block_table + slots[seq] * table_stride, kv_head, heads.kv, block_size, heads.size, first, end};
        const T* source = q + token * q_stride + kv_head * width;
        for (int64_t i = 0; i < width; i++) query[place<T>(i)] = load(source[i]) * scale;
        attend_heads<PARTS>(result, query, k_cache, v_cache, keys, group, scores.data());
        T* target = out + (token * heads.kv + kv_head) * width;
        for (int64_t i = 0; i < width; i++) store(target + i, result[place<T>(i)]);
      }
    }
  }
}

// ---- Python ----------------------------------------------------------------------------------------------------------

// Arguments come as Python integers (addresses, sizes) and floats, checked by the wrappers in ops/native.py.
struct Arguments {
  PyObject* const* next;
  int64_t integer() { return PyLong_AsLongLong(*next++); }
  float real() { return float(PyFloat_AsDouble(*next++)); }
  template <class P>
  P* pointer() {
    return reinterpret_cast<P*>(integer());
  }
  Heads heads() {
    const int64_t queries = integer(), kv = integer(), size = integer();
    return {queries, kv, size};
  }
};

template <class T>
void call_rms_norm(Arguments a) {
  T *out = a.pointer<T>(), *x = a.pointer<T>(), *weight = a.pointer<T>();
  const int64_t rows = a.integer(), size = a.integer();
  rms_norm(out, x, weight, rows, size, a.real());
}

template <class T>
void call_silu_and_mul(Arguments a) {
  T *out = a.pointer<T>(), *x = a.pointer<T>();
  const int64_t rows = a.integer();
  silu_and_mul(out, x, rows, a.integer());
}

template <class T>
void call_qkv_to_cache(Arguments a) {
  T *q = a.pointer<T>(), *k_cache = a.pointer<T>(), *v_cache = a.pointer<T>(), *qkv = a.pointer<T>();
  const auto *positions = a.pointer<int32_t>(), *slots = a.pointer<int32_t>();
  const auto* table = a.pointer<float>();
  T *q_norm = a.pointer<T>(), *k_norm = a.pointer<T>();
  const int64_t tokens = a.integer();
  const Heads heads = a.heads();
  const int64_t block_size = a.integer();
  qkv_to_cache(q, k_cache, v_cache, qkv, positions, slots, table, q_norm, k_norm, tokens, heads, block_size, a.real());
}

template <class T>
void call_one_row_matmul(Arguments a) {
  T *out = a.pointer<T>(), *x = a.pointer<T>(), *weight = a.pointer<T>();
  const int64_t features = a.integer(), size = a.integer();
  T *norm = a.pointer<T>(), *bias = a.pointer<T>(), *residual = a.pointer<T>();
  const bool gated = a.integer();
  one_row_matmul(out, x, weight, features, size, Epilogue<T>{norm, bias, residual, gated, a.real()});
}

template <class T>
void call_paged_attention(Arguments a) {
  T *out = a.pointer<T>(), *q = a.pointer<T>(), *k_cache = a.pointer<T>(), *v_cache = a.pointer<T>();
  const auto *cu_seqlens_q = a.pointer<int32_t>(), *seq_lens = a.pointer<int32_t>(), *slots = a.pointer<int32_t>();
  const auto* block_table = a.pointer<int32_t>();
  const int64_t num_seqs = a.integer(), q_stride = a.integer(), table_stride = a.integer();
  const Heads heads = a.heads();
  const int64_t block_size = a.integer(), window = a.integer();
  const float scale = a.real();
  auto run = [&](auto parts) {
    paged_attention<decltype(parts)::value>(out, q, k_cache, v_cache, cu_seqlens_q, seq_lens, slots, block_table,
                                                 num_seqs, q_stride, table_stride, heads, block_size, window, scale);
  };
  switch (heads.size) {
    case 32: return run(std::integral_constant<int, 1>());
    case 64: return run(std::integral_constant<int, 2>());
    case 96: return run(std::integral_constant<int, 3>());
    case 128: return run(std::integral_constant<int, 4>());
    default: PyErr_Format(PyExc_ValueError, "heads of %lld elements", (long long)heads.size);
  }
}

using Call = void (*)(Arguments);

// A function of the module: its first argument says whether elements are bfloat16 (else float32).
template <Call on_float, Call on_bfloat16, Py_ssize_t num_arguments>
PyObject* entry(PyObject*, PyObject* const* arguments, Py_ssize_t count) {
  if (count != num_arguments) {
    PyErr_Format(PyExc_TypeError, "expected %zd arguments, got %zd", num_arguments, count);
    return nullptr;
  }
  (PyObject_IsTrue(arguments[0]) ? on_bfloat16 : on_float)(Arguments{arguments + 1});
  if (PyErr_Occurred()) return nullptr;
  Py_RETURN_NONE;
}

// The code is made for the machine that compiled it; elsewhere the import must fail, not the process.
bool runs_here() {
#if defined(__x86_64__) && defined(__GNUC__)
#ifdef __AVX512BF16__
  if (!__builtin_cpu_supports("avx512bf16")) return false;
#endif
#ifdef __AVX512F__
  if (!__builtin_cpu_supports("avx512f") || !__builtin_cpu_supports("avx512vl")) return false;
#endif
#ifdef __AVX2__
  if (!__builtin_cpu_supports("avx2") || !__builtin_cpu_supports("fma")) return false;
#endif
#endif
  return true;
}

}  // namespace

#define METHOD(name, num_arguments)                                                                                   \
  {#name, (PyCFunction)(void (*)())entry<call_##name<float>, call_##name<bfloat16>, num_arguments>, METH_FASTCALL,    \
   nullptr}

PyMODINIT_FUNC PyInit__native() {
  static PyMethodDef methods[] = {METHOD(rms_norm, 7), METHOD(silu_and_mul, 5), METHOD(qkv_to_cache, 16),
                                  METHOD(one_row_matmul, 11),
                                  METHOD(paged_attention, 18), {nullptr, nullptr, 0, nullptr}};
  static PyModuleDef module = {PyModuleDef_HEAD_INIT, "_native", nullptr, -1, methods, nullptr, nullptr, nullptr,
                               nullptr};
  if (!runs_here()) {
    PyErr_SetString(PyExc_ImportError, "compiled for another processor: run `pip install -e .` again on this machine");
    return nullptr;
  }
  return PyModule_Create(&module);
}
