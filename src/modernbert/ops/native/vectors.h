/* Vectors of floats, as wide as this CPU has them, and what both kernels do with them. */

#include <immintrin.h>
#include <stdint.h>
#include <string.h>

#define INLINE static inline __attribute__((always_inline))
#define UNROLLED _Pragma("GCC unroll 16")

#ifdef __AVX512F__
#define LANES 16
#else
#define LANES 8
#endif

typedef uint16_t half;                                  /* bf16 */
typedef uint32_t word __attribute__((may_alias));       /* a float, or two halves, the lower one first */
typedef float vector __attribute__((vector_size(4 * LANES)));
typedef float loose_vector __attribute__((vector_size(4 * LANES), aligned(4), may_alias));
typedef int32_t int_vector __attribute__((vector_size(4 * LANES)));

/* Calls a function on each of some threads: `GOMP_parallel` of torch's own OpenMP. */
typedef void Parallel(void (*)(void *), void *, unsigned, unsigned);

INLINE vector load(const float *x) { return *(const loose_vector *)x; }
INLINE void store(float *x, vector v) { *(loose_vector *)x = v; }
INLINE vector all(float x) { return x - (vector){}; }
INLINE int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }
INLINE int64_t larger(int64_t a, int64_t b) { return a > b ? a : b; }

INLINE float as_float(word bits) {
    float x;
    memcpy(&x, &bits, 4);
    return x;
}

INLINE word word_of(float x) {
    word bits;
    memcpy(&bits, &x, 4);
    return bits;
}

/* To the nearest bf16, ties to even, in the upper half of a word; x is not NaN. */
INLINE word rounded(float x) {
    word bits = word_of(x);
    return bits + 0x7fff + (bits >> 16 & 1);
}
INLINE half narrow(float x) { return rounded(x) >> 16; }
INLINE word pair_of(float low, float high) { return rounded(low) >> 16 | (rounded(high) & 0xffff0000); }
INLINE float low_of(word pair) { return as_float(pair << 16); }
INLINE float high_of(word pair) { return as_float(pair & 0xffff0000); }

INLINE vector either(int_vector mask, vector a, vector b) {
    return (vector)(((int_vector)a & mask) | ((int_vector)b & ~mask));
}

#ifdef __AVX512F__
INLINE vector higher_of(vector a, vector b) { return (vector)_mm512_max_ps((__m512)a, (__m512)b); }
INLINE float highest_of(vector v) { return _mm512_reduce_max_ps((__m512)v); }
INLINE float sum_of(vector v) { return _mm512_reduce_add_ps((__m512)v); }
INLINE vector whole(vector x) { return (vector)_mm512_roundscale_ps((__m512)x, _MM_FROUND_NO_EXC); }
INLINE vector times_power(vector x, vector power) { return (vector)_mm512_scalef_ps((__m512)x, (__m512)power); }
#else
INLINE vector higher_of(vector a, vector b) { return (vector)_mm256_max_ps((__m256)a, (__m256)b); }
INLINE float highest_of(vector v) {
    float best = v[0];
    for (int i = 1; i < LANES; i++) best = v[i] > best ? v[i] : best;
    return best;
}
INLINE float sum_of(vector v) {
    float sum = 0;
    for (int i = 0; i < LANES; i++) sum += v[i];
    return sum;
}
INLINE vector whole(vector x) { return (vector)_mm256_round_ps((__m256)x, _MM_FROUND_NO_EXC); }
INLINE vector times_power(vector x, vector power) {
    int_vector exponent = (int_vector)_mm256_cvtps_epi32((__m256)higher_of(power, all(-127.0f))) + 127;
    return x * (vector)(exponent << 23); /* exponent 0 stands for 0 */
}
#endif

/* 2^x for x <= 0, -inf too, to 1 part in 10^7; a polynomial between powers of two. */
INLINE vector exp2_of(vector x) {
    x = higher_of(x, all(-200.0f)); /* of which 2^x is 0 already */
    vector power = whole(x), f = x - power;
    vector y = 1.5316464e-4f * f + 1.3395279e-3f;
    y = y * f + 9.6184373e-3f;
    y = y * f + 5.5503324e-2f;
    y = y * f + 2.4022651e-1f;
    y = y * f + 6.9314720e-1f;
    return times_power(y * f + 1.0f, power);
}
