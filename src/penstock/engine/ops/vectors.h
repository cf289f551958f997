/* Vectors of floats in the compiler's own extension, which becomes AVX-512, AVX2 or NEON as the machine has it, and what
 * the kernels in C share: elements that are float or bfloat16 (`half`), e^x, transposition. Nothing here needs
 * relaxed floating point: a NaN stays one and ends only the row it came from.
 */
#ifndef PENSTOCK_VECTORS_H
#define PENSTOCK_VECTORS_H
#ifdef __AVX512F__
#include <immintrin.h>
#endif
#include <math.h>
#include <stdint.h>
#include <string.h>

#define INLINE static inline __attribute__((always_inline))
/* As many as a register holds: GCC keeps larger vectors in memory, which is ten times slower. products.h asks for 16. */
#ifndef LANES
#if defined(__AVX512F__)
#define LANES 16
#elif defined(__AVX__)
#define LANES 8
#else
#define LANES 4
#endif
#endif

typedef float vec __attribute__((vector_size(4 * LANES)));
typedef int32_t lanes __attribute__((vector_size(4 * LANES)));
#ifdef __clang__
#define PICK(a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else /* GCC has clang's name for it only since version 12 */
#define PICK(a, b, ...) __builtin_shuffle(a, b, (lanes){__VA_ARGS__})
#endif

INLINE vec load_vec(const float *p) { vec v; memcpy(&v, p, sizeof v); return v; }
INLINE void store_vec(float *p, vec v) { memcpy(p, &v, sizeof v); }
INLINE vec all(float x) { return x - (vec){0}; }
/* Lane by lane: where `mask` is set a, elsewhere b. */
INLINE vec choose(lanes mask, vec a, vec b) { return (vec)((mask & (lanes)a) | (~mask & (lanes)b)); }
/* The larger, the smaller; b where one is no number. */
#if defined(__AVX512F__) && LANES == 16 /* which compilers do not see in the other form */
INLINE vec larger(vec a, vec b) { return (vec)_mm512_max_ps((__m512)a, (__m512)b); }
INLINE vec smaller(vec a, vec b) { return (vec)_mm512_min_ps((__m512)a, (__m512)b); }
#else
INLINE vec larger(vec a, vec b) { return choose(a > b, a, b); }
INLINE vec smaller(vec a, vec b) { return choose(a < b, a, b); }
#endif

INLINE float widen(uint16_t x) { uint32_t u = (uint32_t)x << 16; float f; memcpy(&f, &u, 4); return f; }

/* Round to nearest, ties to even; a NaN stays a NaN. */
INLINE uint16_t narrow(float f) {
    uint32_t u;
    memcpy(&u, &f, 4);
    uint32_t rounded = (u + 0x7fff + ((u >> 16) & 1)) >> 16;
    return f != f ? 0x7fc0 : (uint16_t)rounded;
}

INLINE float load(const void *p, long i, const int half) {
    return half ? widen(((const uint16_t *)p)[i]) : ((const float *)p)[i];
}

INLINE void store(void *p, long i, float x, const int half) {
    if (half) ((uint16_t *)p)[i] = narrow(x);
    else ((float *)p)[i] = x;
}

/* LANES elements from i on. */
typedef uint16_t halves __attribute__((vector_size(2 * LANES)));
typedef uint32_t words __attribute__((vector_size(4 * LANES)));
INLINE vec load_lanes(const void *p, long i, const int half) {
    if (!half) return load_vec((const float *)p + i);
    halves h;
    memcpy(&h, (const uint16_t *)p + i, sizeof h);
    return (vec)(__builtin_convertvector(h, words) << 16);
}

INLINE void store_lanes(void *p, long i, vec v, const int half) {
    if (!half) {
        store_vec((float *)p + i, v);
        return;
    }
    words u = (words)v, rounded = (u + 0x7fff + ((u >> 16) & 1)) >> 16;
    lanes number = v == v;
    halves h = __builtin_convertvector((words)((number & (lanes)rounded) | (~number & 0x7fc0)), halves);
    memcpy((uint16_t *)p + i, &h, sizeof h);
}

INLINE const void *at(const void *p, long i, const int half) { return (const char *)p + i * (half ? 2 : 4); }

/* e^x to about 1 ulp for x in [-87, 88], clamped outside: Cody-Waite reduction, then Cephes' polynomial. */
INLINE vec exponential(vec x) {
    const vec magic = all(12582912.0f); /* 1.5 * 2^23: adding it rounds to a whole number in the low bits */
    x = smaller(all(88.0f), larger(all(-87.0f), x));
    vec shifted = x * 1.44269504f + magic;
    vec n = shifted - magic;
    vec r = x - n * 0.693359375f + n * 2.12194440e-4f;
    vec p = all(1.9875691500e-4f);
    p = p * r + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * r * r + r + 1.0f;
    lanes power = ((lanes)shifted - 0x4b400000 + 127) << 23;
    return p * (vec)power;
}

/* tanh x to about 1e-7; a NaN stays one. */
INLINE vec hyperbolic_tangent(vec x) {
    lanes sign = (lanes)x & INT32_MIN;
    vec e = exponential(-2.0f * (vec)((lanes)x & INT32_MAX));
    return (vec)((lanes)((1.0f - e) / (1.0f + e)) | sign);
}

/* Lanes a number apart change places, lane by lane even and odd ones of two vectors, and the lower and upper
 * halves of two vectors lane by lane in turn. */
#if LANES == 16
#define STEPS 4
#define NUMBERS {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15}
#define SWAP_8(v) PICK(v, v, 8, 9, 10, 11, 12, 13, 14, 15, 0, 1, 2, 3, 4, 5, 6, 7)
#define SWAP_4(v) PICK(v, v, 4, 5, 6, 7, 0, 1, 2, 3, 12, 13, 14, 15, 8, 9, 10, 11)
#define SWAP_2(v) PICK(v, v, 2, 3, 0, 1, 6, 7, 4, 5, 10, 11, 8, 9, 14, 15, 12, 13)
#define SWAP_1(v) PICK(v, v, 1, 0, 3, 2, 5, 4, 7, 6, 9, 8, 11, 10, 13, 12, 15, 14)
#define EVEN(a, b) PICK(a, b, 0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30)
#define ODD(a, b) PICK(a, b, 1, 3, 5, 7, 9, 11, 13, 15, 17, 19, 21, 23, 25, 27, 29, 31)
#define LOW(a, b) PICK(a, b, 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23)
#define HIGH(a, b) PICK(a, b, 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31)
#elif LANES == 8
#define STEPS 3
#define NUMBERS {0, 1, 2, 3, 4, 5, 6, 7}
#define SWAP_4(v) PICK(v, v, 4, 5, 6, 7, 0, 1, 2, 3)
#define SWAP_2(v) PICK(v, v, 2, 3, 0, 1, 6, 7, 4, 5)
#define SWAP_1(v) PICK(v, v, 1, 0, 3, 2, 5, 4, 7, 6)
#define EVEN(a, b) PICK(a, b, 0, 2, 4, 6, 8, 10, 12, 14)
#define ODD(a, b) PICK(a, b, 1, 3, 5, 7, 9, 11, 13, 15)
#define LOW(a, b) PICK(a, b, 0, 8, 1, 9, 2, 10, 3, 11)
#define HIGH(a, b) PICK(a, b, 4, 12, 5, 13, 6, 14, 7, 15)
#else
#define STEPS 2
#define NUMBERS {0, 1, 2, 3}
#define SWAP_2(v) PICK(v, v, 2, 3, 0, 1)
#define SWAP_1(v) PICK(v, v, 1, 0, 3, 2)
#define EVEN(a, b) PICK(a, b, 0, 2, 4, 6)
#define ODD(a, b) PICK(a, b, 1, 3, 5, 7)
#define LOW(a, b) PICK(a, b, 0, 4, 1, 5)
#define HIGH(a, b) PICK(a, b, 2, 6, 3, 7)
#endif

/* The largest lane; no lane may be no number. */
INLINE float largest(vec v) {
#if STEPS > 3
    v = larger(v, SWAP_8(v));
#endif
#if STEPS > 2
    v = larger(v, SWAP_4(v));
#endif
    v = larger(v, SWAP_2(v));
    return larger(v, SWAP_1(v))[0];
}

/* Sums of LANES vectors as the lanes of one: pairs are added lane by lane, halving their number each time. */
#define HALVE(n) \
    _Pragma("GCC unroll 8") for (int i = 0; i < n; i++) v[i] = EVEN(v[2 * i], v[2 * i + 1]) + ODD(v[2 * i], v[2 * i + 1]);
INLINE vec sums(vec v[LANES]) {
#if STEPS > 3
    HALVE(8)
#endif
#if STEPS > 2
    HALVE(4)
#endif
    HALVE(2) HALVE(1)
    return v[0];
}

/* LANES x LANES floats, rows `from_stride` apart, to their transpose: STEPS perfect shuffles of the vectors. */
#define SHUFFLE(to, from)                                                \
    _Pragma("GCC unroll 8") for (int i = 0; i < LANES / 2; i++) {        \
        to[2 * i] = LOW(from[i], from[i + LANES / 2]);                   \
        to[2 * i + 1] = HIGH(from[i], from[i + LANES / 2]);              \
    }
INLINE void transpose(float *to, long to_stride, const float *from, long from_stride) {
    vec a[LANES], b[LANES];
    _Pragma("GCC unroll 16") for (int i = 0; i < LANES; i++) a[i] = load_vec(from + i * from_stride);
    SHUFFLE(b, a) SHUFFLE(a, b)
#if STEPS > 3
    SHUFFLE(b, a) SHUFFLE(a, b)
#elif STEPS > 2
    SHUFFLE(b, a)
#endif
    vec *last = STEPS == 3 ? b : a;
    _Pragma("GCC unroll 16") for (int i = 0; i < LANES; i++) store_vec(to + i * to_stride, last[i]);
}
#endif
