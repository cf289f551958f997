/* Up to four rows times a panel of narrow weights: four k are widened at a time, in registers, which ends before a piece
 * of the panel would have been written to the cache and read again. Sums go up k in one chain, as a tile's do.
 */
#ifndef PENSTOCK_PRODUCTS_FEW_H
#define PENSTOCK_PRODUCTS_FEW_H
#include "products_float28.h"

#define FEW_ROWS 4
#define FEW_AHEAD 4096 /* bytes, into the first cache: 5 % faster than half of it into the second (Xeon, 2026) */

/* Lines of 64 bytes that four k take. */
INLINE long few_lines(const int kind) { return kind == FLOAT28 ? 7 : kind == BFLOAT16 ? 4 : 2; }

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
    float28_widen_four(four, float28_exponents(base), wide);
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

/* x [mr, inputs] times a whole panel of `kind`: sums [mr, 32], of int8 without the scales. */
INLINE void few(const float *x, long stride, const Matrix *m, const void *panel, float *sums, const int kind,
                const int mr) {
    Head28 head = {0};
    words table = {0};
    const uint32_t *four = panel;
    const Whole *one = NULL, *end = NULL;
    float patched[8 * LANES] __attribute__((aligned(64)));
    vec left[FEW_ROWS], right[FEW_ROWS], wide[8];
    if (kind == FLOAT28) {
        head = float28_head(panel);
        table = float28_exponents(head.base);
        four = float28_four(panel, 0);
        one = float28_list(m) + head.first;
        end = float28_list(m) + head.end;
    }
    for (int r = 0; r < mr; r++) left[r] = right[r] = (vec){0};
    long k = 0, whole = kind == BFLOAT16 ? m->inputs / 4 * 4 : m->inputs;
    for (; k < whole; k += 4, four += few_lines(kind) * LANES) {
        for (long line = 0; line < few_lines(kind); line++)
            __builtin_prefetch((const char *)four + FEW_AHEAD + line * 64);
        if (kind == BFLOAT16) widen_four_bfloat16(four, wide);
        else if (kind == INT8_WEIGHTS) widen_four_int8(four, wide);
        else if (__builtin_expect(one < end && one->where < (uint32_t)((k + 4) * PANEL), 0)) {
            one = float28_patch_four(four, head.base, k, one, end, patched);
            for (int v = 0; v < 8; v++) wide[v] = load_vec(patched + v * LANES);
        } else float28_widen_four(four, table, wide);
        if (k + 4 <= m->inputs) {
            #pragma GCC unroll 4
            for (int i = 0; i < 4; i++)
                #pragma GCC unroll 4
                for (int r = 0; r < mr; r++) ADD(i, r)
        } else
            for (long i = 0; i < m->inputs - k; i++)
                for (int r = 0; r < mr; r++) ADD(i, r)
    }
    for (; k < m->inputs; k++, four += LANES) { /* panels of bfloat16 are not filled up to four */
        words both = load_words(four);
        wide[0] = as_floats(both << 16);
        wide[1] = as_floats(both & 0xffff0000u);
        for (int r = 0; r < mr; r++) ADD(0, r)
    }
    for (int r = 0; r < mr; r++) {
        store_vec(sums + r * PANEL, left[r]);
        store_vec(sums + r * PANEL + LANES, right[r]);
    }
}
#undef ADD

typedef void few_of(const float *, long, const Matrix *, const void *, float *);
#define FEW_OF(kind, mr)                                                                                  \
    static __attribute__((noinline)) void few_##kind##_##mr(const float *x, long stride, const Matrix *m, \
                                                            const void *panel, float *sums) {             \
        few(x, stride, m, panel, sums, kind, mr);                                                         \
    }
#define FEW_OF_KIND(kind) FEW_OF(kind, 1) FEW_OF(kind, 2) FEW_OF(kind, 3) FEW_OF(kind, 4)
FEW_OF_KIND(BFLOAT16) FEW_OF_KIND(INT8_WEIGHTS) FEW_OF_KIND(FLOAT28)
#define FEW_FUNCTIONS(kind) {few_##kind##_1, few_##kind##_2, few_##kind##_3, few_##kind##_4}
/* By kind, and by rows less one. */
static few_of *const FEW[][FEW_ROWS] = {
    [BFLOAT16] = FEW_FUNCTIONS(BFLOAT16), [INT8_WEIGHTS] = FEW_FUNCTIONS(INT8_WEIGHTS), [FLOAT28] = FEW_FUNCTIONS(FLOAT28),
};
#endif
