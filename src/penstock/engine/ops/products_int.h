/* What products in whole numbers have in common: sums of products of bytes, and rounding to bytes. */
#ifndef PENSTOCK_PRODUCTS_INT_H
#define PENSTOCK_PRODUCTS_INT_H
#include "products.h"

#ifdef __AVX512F__
#include <immintrin.h>
#endif

/* sums += the four products of each word's bytes: `a` unsigned, `b` signed. */
INLINE ints dot(ints sums, words a, words b) {
#ifdef __AVX512VNNI__
    return (ints)_mm512_dpbusd_epi32((__m512i)sums, (__m512i)a, (__m512i)b);
#else
    for (int j = 0; j < 4; j++) sums += (ints)(a >> (8 * j) & 255) * ((ints)(b << (24 - 8 * j)) >> 24);
    return sums;
#endif
}

INLINE words every(const void *word) { uint32_t w; memcpy(&w, word, 4); return w - (words){0}; }

/* Largest of 16, as unsigned. */
INLINE uint32_t highest(words w) {
#ifdef __AVX512F__
    return _mm512_reduce_max_epu32((__m512i)w);
#else
    uint32_t each[LANES], high = 0;
    memcpy(each, &w, sizeof w);
    #pragma omp simd reduction(max : high)
    for (int i = 0; i < LANES; i++) high = each[i] > high ? each[i] : high;
    return high;
#endif
}

INLINE words larger_word(words a, words b) {
    words first = (words)(a > b);
    return (a & first) | (b & ~first);
}

INLINE float as_float(uint32_t u) { float f; memcpy(&f, &u, 4); return f; }

#define MAGIC 12582912.0f /* 1.5 * 2^23: adding it rounds to a whole number, ties to even, in the low bits */
#define MAGIC_BITS 0x4b400000u

typedef uint8_t narrow_lanes __attribute__((vector_size(LANES)));

INLINE narrow_lanes low_bytes(words w) {
#ifdef __AVX512F__
    return (narrow_lanes)_mm512_cvtepi32_epi8((__m512i)w);
#else
    return __builtin_convertvector(w, narrow_lanes);
#endif
}
#endif
