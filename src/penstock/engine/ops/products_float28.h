/* float32 weights in 28 bits each, nothing lost: sign and fraction as they are, and of the exponent how far it is above
 * the panel's base, in four bits. Weights of a matrix spread over a few powers of two: some one in ten thousand lies
 * further below the largest, and is kept whole in a list beside the panels.
 *
 * A blob is the panels, then the list. A panel: a head of 64 bytes, then for each four k seven lines of 64 bytes, each
 * 16 words. Of the eight vectors that four k make (k0's outputs 0 to 15, k0's 16 to 31, k1's, ...), six have their sign
 * and fraction where a float has them in the first six lines; the 24 bits of the last two lie, eight to a word, where
 * those would have their exponents. The seventh line has the codes of all eight, four bits each: 0 is a zero.
 * Source: patched frame of reference, Zukowski et al., Super-Scalar RAM-CPU Cache Compression, ICDE 2006; that
 * exponents of weights compress without loss, Zhang et al., 70% Size, 100% Accuracy (DFloat11), 2025.
 */
#ifndef PENSTOCK_PRODUCTS_FLOAT28_H
#define PENSTOCK_PRODUCTS_FLOAT28_H
#include "products.h"

#define FOUR_WORDS (7 * LANES) /* of four k */
#define HEAD_BYTES 64
#define CODES 16
#define SIGN 0x80000000u
#define FRACTION 0x007fffffu
#define OWN (SIGN | FRACTION)

typedef struct {
    int32_t base;        /* exponent that code 0 would have */
    uint32_t first, end; /* whose of the list are this panel's */
} Head28;

typedef struct {
    uint32_t where; /* k * 32 + output */
    float value;
} Whole;

INLINE long float28_panel_bytes(long inputs) { return HEAD_BYTES + divide_up(inputs, 4) * FOUR_WORDS * 4; }
INLINE Head28 float28_head(const void *panel) { Head28 h; memcpy(&h, panel, sizeof h); return h; }
INLINE const uint32_t *float28_four(const void *panel, long k) {
    return (const uint32_t *)((const char *)panel + HEAD_BYTES) + k / 4 * FOUR_WORDS;
}
INLINE const Whole *float28_list(const Matrix *m) {
    return (const Whole *)((const char *)m->packed + divide_up(m->outputs, PANEL) * float28_panel_bytes(m->inputs));
}

/* By code, the bits of the exponent, where a register holds all 16; else those of the base. */
INLINE part_words float28_exponents(int base) {
#ifdef __AVX512F__
    words found = ((words){0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15} + (uint32_t)base) << 23;
    found[0] = 0;
    return found;
#else
    return (part_words){0} + ((uint32_t)base << 23);
#endif
}

INLINE part_words float28_exponent(part_words codes, part_words exponents) {
#ifdef __AVX512F__
    return (part_words)_mm512_permutexvar_epi32((__m512i)codes, (__m512i)exponents);
#else
    part_words code = codes & (CODES - 1), there = (part_words)(code != 0);
    return ((code << 23) + exponents) & there;
#endif
}

/* The last vector of three: its 24 bits are where their exponents would be. */
INLINE part float28_fourth(part_words a, part_words b, part_words c, part_words exponent) {
    return as_part(exponent | (a >> 23 & 0xffu) | (b >> 15 & 0xff00u) | (c >> 7 & 0x7f0000u) | (c << 1 & SIGN));
}

/* One part of each of the eight vectors of four k, the one that begins at word `first` of the lines. */
INLINE void float28_widen_four(const uint32_t *four, int first, part_words exponents, part *to) {
    part_words line[7];
    #pragma GCC unroll 7
    for (int i = 0; i < 7; i++) line[i] = load_part_words(four + i * LANES + first);
    #pragma GCC unroll 6
    for (int v = 0; v < 6; v++) to[v] = as_part((line[v] & OWN) | float28_exponent(line[6] >> 4 * v, exponents));
    to[6] = float28_fourth(line[0], line[1], line[2], float28_exponent(line[6] >> 24, exponents));
    to[7] = float28_fourth(line[3], line[4], line[5], float28_exponent(line[6] >> 28, exponents));
}

/* The panel's first on the list that is at k or beyond. */
INLINE const Whole *float28_from(const Whole *list, Head28 head, long k) {
    uint32_t low = head.first, high = head.end;
    while (low < high) {
        uint32_t middle = low + (high - low) / 2;
        if (list[middle].where < (uint32_t)(k * PANEL)) low = middle + 1;
        else high = middle;
    }
    return list + low;
}

/* `depth` k of a panel, from the k-th (a multiple of four), as floats; up to three k more are written. */
INLINE void widen_float28(float *to, const Matrix *m, const void *panel, long k, long depth) {
    Head28 head = float28_head(panel);
    part_words exponents = float28_exponents(head.base);
    const uint32_t *four = float28_four(panel, k);
    for (long i = 0; i < depth; i += 4, four += FOUR_WORDS)
        for (int p = 0; p < LANES; p += PART) {
            part wide[8];
            float28_widen_four(four, p, exponents, wide);
            for (int v = 0; v < 8; v++) store_part(to + i * PANEL + v * LANES + p, wide[v]);
        }
    const Whole *list = float28_list(m), *end = list + head.end;
    for (const Whole *one = float28_from(list, head, k); one < end && one->where < (uint32_t)((k + depth) * PANEL); one++)
        to[one->where - k * PANEL] = one->value;
}

#endif
