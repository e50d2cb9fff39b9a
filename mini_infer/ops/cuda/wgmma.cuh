// The product of the tensor cores that run by themselves, of the widths that kernels ask for.
//
// sums [64, WIDTH] (+)= a [64, 16] b [WIDTH, 16]^T, both in shared memory. Of a warp's 16 rows a thread holds two:
// sums[4 c + 2 r + i] is row lane / 4 + 8 r, column 8 c + lane % 4 * 2 + i. The instruction's name holds the width; its
// inputs are declared as outputs so that they are numbered before the sums.

#pragma once

#include <stdint.h>

#define REGISTERS_8 "%3,%4,%5,%6"
#define REGISTERS_16 REGISTERS_8 ",%7,%8,%9,%10"
#define REGISTERS_32 REGISTERS_16 ",%11,%12,%13,%14,%15,%16,%17,%18"
#define REGISTERS_64 REGISTERS_32 ",%19,%20,%21,%22,%23,%24,%25,%26,%27,%28,%29,%30,%31,%32,%33,%34"
#define REGISTERS_112 REGISTERS_64 \
  ",%35,%36,%37,%38,%39,%40,%41,%42,%43,%44,%45,%46,%47,%48,%49,%50,%51,%52,%53,%54,%55,%56,%57,%58"
#define REGISTERS_144 REGISTERS_112 ",%59,%60,%61,%62,%63,%64,%65,%66,%67,%68,%69,%70,%71,%72,%73,%74"
#define REGISTERS_192 REGISTERS_144 \
  ",%75,%76,%77,%78,%79,%80,%81,%82,%83,%84,%85,%86,%87,%88,%89,%90,%91,%92,%93,%94,%95,%96,%97,%98"
#define FOUR(i) "+f"(sums[i]), "+f"(sums[i + 1]), "+f"(sums[i + 2]), "+f"(sums[i + 3])
#define SUMS_8 FOUR(0)
#define SUMS_16 SUMS_8, FOUR(4)
#define SUMS_32 SUMS_16, FOUR(8), FOUR(12)
#define SUMS_64 SUMS_32, FOUR(16), FOUR(20), FOUR(24), FOUR(28)
#define SUMS_112 SUMS_64, FOUR(32), FOUR(36), FOUR(40), FOUR(44), FOUR(48), FOUR(52)
#define SUMS_144 SUMS_112, FOUR(56), FOUR(60), FOUR(64), FOUR(68)
#define SUMS_192 SUMS_144, FOUR(72), FOUR(76), FOUR(80), FOUR(84), FOUR(88), FOUR(92)
#define DEFINE_MULTIPLY(WIDTH)                                                                           \
  __device__ __forceinline__ void multiply(float (&sums)[WIDTH / 2], uint64_t a, uint64_t b, int adds) { \
    asm volatile(                                                                                        \
        "{.reg .pred adds;\n"                                                                            \
        "setp.ne.b32 adds, %2, 0;\n"                                                                     \
        "wgmma.mma_async.sync.aligned.m64n" #WIDTH "k16.f32.bf16.bf16 {" REGISTERS_##WIDTH               \
        "}, %0, %1, adds, 1, 1, 0, 0;}"                                                                  \
        : "+l"(a), "+l"(b), "+r"(adds), SUMS_##WIDTH);                                                   \
  }
