/* A few rows times a panel of narrow weights: four k are widened at a time, in registers, which ends before a piece of
 * the panel would have been written to the cache and read again. Sums go up k in one chain, as a tile's do.
 */
#ifndef PENSTOCK_PRODUCTS_FEW_H
#define PENSTOCK_PRODUCTS_FEW_H
#include "products_float28.h"

/* Lines of 64 bytes that four k take. */
INLINE long few_lines(const int kind) { return kind == FLOAT28 ? 7 : kind == BFLOAT16 ? 4 : 2; }

#define FEW_DEPTH 64 /* k at a time, where several groups of few rows read what is in the first cache by then */
#define FEW_ROWS 8 /* their sums and what was widened are 24 of 32 registers */

#ifndef __AVX512F__
/* Eight vectors of 16 do not fit into smaller registers beside the sums. */
INLINE long few_rows(long kind) { (void)kind; return 0; }
#else
#define FEW_AHEAD 4096 /* bytes, into the first cache: 5 % faster than half of it into the second (Xeon, 2026) */

/* The most rows for which it is faster: two groups of them, unless widening costs as much as their products do. */
INLINE long few_rows(long kind) { return kind == FLOAT32 ? 0 : kind == FLOAT28 ? FEW_ROWS : 2 * FEW_ROWS; }

INLINE void widen_four_bfloat16(const uint32_t *four, vec *to) {
    for (int i = 0; i < 4; i++) {
        words both = load_words(four + i * LANES);
        to[2 * i] = as_floats(both << 16);
        to[2 * i + 1] = as_floats(both & 0xffff0000u);
    }
}

INLINE void widen_four_int8(const uint32_t *four, vec *to) {
    for (int side = 0; side < 2; side++) {
        words bytes = load_words(four + side * LANES);
        for (int i = 0; i < 4; i++)
            to[2 * i + side] = __builtin_convertvector((ints)(bytes << (24 - 8 * i)) >> 24, vec);
    }
}

/* Four k with those on the list from `one` on; returns the first beyond them. Apart, so that the eight vectors of others
 * stay in registers. */
static __attribute__((noinline)) const Whole *float28_patch_four(const uint32_t *four, int base, long k, const Whole *one,
                                                                 const Whole *end, float *patched) {
    vec wide[8];
    float28_widen_four(four, 0, float28_exponents(base), wide);
    for (int v = 0; v < 8; v++) store_vec(patched + v * LANES, wide[v]);
    for (; one < end && one->where < (uint32_t)((k + 4) * PANEL); one++) patched[one->where - k * PANEL] = one->value;
    return one;
}

/* Row r's `k`-th to the sums. */
#define ADD(i, r)                            \
    {                                        \
        float y = x[(r) * stride + k + (i)]; \
        left[r] += y * wide[2 * (i)];        \
        right[r] += y * wide[2 * (i) + 1];   \
    }

/* x [mr, inputs] times `depth` k of a panel of `kind` from the k-th on, a multiple of four: added to `sums` [mr, 32] if
 * `more`, else in their place; of int8 without the scales. */
INLINE void few(const float *x, long stride, const Matrix *m, const void *panel, long k, long depth, float *sums, int more,
                const int kind, const int mr) {
    Head28 head = {0};
    part_words exponents = {0};
    const uint32_t *four = (const uint32_t *)panel + k / 4 * few_lines(kind) * LANES;
    const Whole *one = NULL, *end = NULL;
    float patched[8 * LANES] __attribute__((aligned(64)));
    vec left[FEW_ROWS], right[FEW_ROWS], wide[8];
    if (kind == FLOAT28) {
        head = float28_head(panel);
        exponents = float28_exponents(head.base);
        four = float28_four(panel, k);
        one = float28_from(float28_list(m), head, k);
        end = float28_list(m) + head.end;
    }
    #pragma GCC unroll 8
    for (int r = 0; r < mr; r++) {
        left[r] = more ? load_vec(sums + r * PANEL) : (vec){0};
        right[r] = more ? load_vec(sums + r * PANEL + LANES) : (vec){0};
    }
    long last = k + depth, whole = kind == BFLOAT16 ? k + depth / 4 * 4 : last;
    for (; k < whole; k += 4, four += few_lines(kind) * LANES) {
        for (long line = 0; line < few_lines(kind); line++)
            __builtin_prefetch((const char *)four + FEW_AHEAD + line * 64);
        if (kind == BFLOAT16) widen_four_bfloat16(four, wide);
        else if (kind == INT8_WEIGHTS) widen_four_int8(four, wide);
        else if (__builtin_expect(one < end && one->where < (uint32_t)((k + 4) * PANEL), 0)) {
            one = float28_patch_four(four, head.base, k, one, end, patched);
            for (int v = 0; v < 8; v++) wide[v] = load_vec(patched + v * LANES);
        } else float28_widen_four(four, 0, exponents, wide);
        if (k + 4 <= last) {
            #pragma GCC unroll 4
            for (int i = 0; i < 4; i++)
                #pragma GCC unroll 8
                for (int r = 0; r < mr; r++) ADD(i, r)
        } else
            for (long i = 0; i < last - k; i++)
                for (int r = 0; r < mr; r++) ADD(i, r)
    }
    for (; k < last; k++, four += LANES) { /* panels of bfloat16 are not filled up to four */
        words both = load_words(four);
        wide[0] = as_floats(both << 16);
        wide[1] = as_floats(both & 0xffff0000u);
        for (int r = 0; r < mr; r++) ADD(0, r)
    }
    #pragma GCC unroll 8
    for (int r = 0; r < mr; r++) {
        store_vec(sums + r * PANEL, left[r]);
        store_vec(sums + r * PANEL + LANES, right[r]);
    }
}
#undef ADD

typedef void few_of(const float *, long, const Matrix *, const void *, long, long, float *, int);
#define FEW_OF(kind, mr)                                                                                           \
    static __attribute__((noinline)) void few_##kind##_##mr(const float *x, long stride, const Matrix *m,          \
                                                            const void *panel, long k, long depth, float *sums,    \
                                                            int more) {                                            \
        few(x, stride, m, panel, k, depth, sums, more, kind, mr);                                                  \
    }
#define FEW_OF_KIND(kind)                                                 \
    FEW_OF(kind, 1) FEW_OF(kind, 2) FEW_OF(kind, 3) FEW_OF(kind, 4)       \
    FEW_OF(kind, 5) FEW_OF(kind, 6) FEW_OF(kind, 7) FEW_OF(kind, 8)
FEW_OF_KIND(BFLOAT16) FEW_OF_KIND(INT8_WEIGHTS) FEW_OF_KIND(FLOAT28)
#define FEW_FUNCTIONS(kind)                                                                \
    {few_##kind##_1, few_##kind##_2, few_##kind##_3, few_##kind##_4,                       \
     few_##kind##_5, few_##kind##_6, few_##kind##_7, few_##kind##_8}
/* By kind, and by rows less one. */
static few_of *const FEW[][FEW_ROWS] = {
    [BFLOAT16] = FEW_FUNCTIONS(BFLOAT16), [INT8_WEIGHTS] = FEW_FUNCTIONS(INT8_WEIGHTS), [FLOAT28] = FEW_FUNCTIONS(FLOAT28),
};
#endif
#endif
