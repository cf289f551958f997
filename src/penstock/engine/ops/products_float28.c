/* Packs float32 weights into 28 bits each (products_float28.h says how). */
#include "products_float28.h"

/* The element of a panel, 0 where the weight ends. */
INLINE uint32_t element(const float *weight, long outputs, long inputs, long output, long k) {
    uint32_t bits = 0;
    if (output < outputs && k < inputs) memcpy(&bits, weight + output * inputs + k, 4);
    return bits;
}

INLINE uint32_t exponent_of(uint32_t bits) { return bits >> 23 & 0xff; }
/* 1 to 15: that far above the base. 0: a zero, or what has to be kept whole. */
INLINE uint32_t code_of(uint32_t bits, int base) {
    int above = (int)exponent_of(bits) - base;
    return exponent_of(bits) && above > 0 && above < CODES ? (uint32_t)above : 0;
}
INLINE int is_zero(uint32_t bits) { return !(bits & ~SIGN); }

/* The heads of all panels of a weight [O, I], [panels] Head28. Returns how long the list is. */
long penstock_float28_heads(const float *weight, Head28 *heads, long outputs, long inputs, long threads) {
    long panels = divide_up(outputs, PANEL), whole = 0;
    #pragma omp parallel for num_threads((int)threads) if (threads > 1)
    for (long p = 0; p < panels; p++) {
        uint32_t high = CODES - 1, count = 0;
        long from = p * PANEL * inputs, to = least((p + 1) * PANEL, outputs) * inputs, bits;
        for (long i = from; i < to; i++) high = (uint32_t)most(high, exponent_of(element(weight, 1, to, 0, i)));
        int base = (int)high - (CODES - 1);
        for (long i = from; i < to; i++) {
            bits = element(weight, 1, to, 0, i);
            count += !is_zero((uint32_t)bits) && !code_of((uint32_t)bits, base);
        }
        heads[p] = (Head28){base, 0, count};
    }
    for (long p = 0; p < panels; p++) {
        heads[p].first = (uint32_t)whole;
        whole += heads[p].end;
        heads[p].end = (uint32_t)whole;
    }
    return whole;
}

/* A weight [O, I] to a blob of panels and list, with the heads from above. */
void penstock_pack_float28(const float *weight, const Head28 *heads, void *packed, long outputs, long inputs,
                           long threads) {
    long panels = divide_up(outputs, PANEL), panel_bytes = float28_panel_bytes(inputs);
    Whole *list = (Whole *)((char *)packed + panels * panel_bytes);
    ask_for_large_pages(packed, panels * panel_bytes);
    #pragma omp parallel for num_threads((int)threads) if (threads > 1)
    for (long p = 0; p < panels; p++) {
        char *panel = (char *)packed + p * panel_bytes;
        Head28 head = heads[p];
        Whole *next = list + head.first;
        memset(panel, 0, HEAD_BYTES);
        memcpy(panel, &head, sizeof head);
        uint32_t *four = (uint32_t *)(panel + HEAD_BYTES);
        for (long k = 0; k < inputs; k += 4, four += FOUR_WORDS) {
            memset(four, 0, FOUR_WORDS * 4);
            for (long i = 0; i < 4; i++)
                for (long o = 0; o < PANEL; o++) {
                    uint32_t bits = element(weight, outputs, inputs, p * PANEL + o, k + i), code = code_of(bits, head.base);
                    long v = 2 * i + o / LANES, lane = o % LANES;
                    if (!code && !is_zero(bits)) {
                        *next = (Whole){(uint32_t)((k + i) * PANEL + o), 0};
                        memcpy(&next++->value, &bits, 4);
                    }
                    uint32_t own = code ? bits & OWN : bits & SIGN;
                    four[6 * LANES + lane] |= code << 4 * v;
                    if (v < 6) four[v * LANES + lane] |= own;
                    else
                        for (int byte = 0; byte < 3; byte++) {
                            uint32_t aside = (own & FRACTION) | own >> 8 & 0x800000u;
                            four[((v - 6) * 3 + byte) * LANES + lane] |= (aside >> 8 * byte & 0xffu) << 23;
                        }
                }
        }
    }
}
