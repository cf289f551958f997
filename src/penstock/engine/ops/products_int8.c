/* Products of int8 weights with int8 activations.
 *
 * w = scale of the output * q, x = scale of the row * q, both from the largest magnitude. Four k make a 32-bit word,
 * [k / 4][32 outputs][4]. The CPU multiplies unsigned by signed bytes, so 128 is added to an activation and 128 times
 * the sum of the output's weights taken off the result.
 * Sums of whole numbers are exact: rows do not depend on each other.
 * Source: LLM.int8(), Dettmers et al., NeurIPS 2022, for scales by output and row.
 */
#include "products_int.h"

#ifdef __AVX512F__
#define TILE 14
#else
#define TILE 2
#endif

INLINE uint32_t magnitude_bits(float x) { uint32_t u; memcpy(&u, &x, 4); return u & 0x7fffffff; }

/* Largest magnitude. By bit patterns, which order like magnitudes and put a NaN above all. */
INLINE float magnitude(const float *x, long n) {
    words a = {0}, b = {0}, sign = 0x7fffffffu - (words){0};
    long i = 0;
    for (; i + 2 * LANES <= n; i += 2 * LANES) {
        a = larger_word(a, load_words(x + i) & sign);
        b = larger_word(b, load_words(x + i + LANES) & sign);
    }
    uint32_t high = highest(larger_word(a, b));
    for (; i < n; i++) high = magnitude_bits(x[i]) > high ? magnitude_bits(x[i]) : high;
    return as_float(high);
}

/* n values to bytes plus `offset`, the largest magnitude to 127; returns their scale. What is no number becomes any. */
INLINE float quantize(const float *x, long n, uint8_t *to, int offset) {
    float high = magnitude(x, n), inverse = high > 0 ? 127.0f / high : 0.0f;
    long i = 0;
    for (; i + LANES <= n; i += LANES) {
        vec y = load_vec(x + i) * inverse + MAGIC;
        words bits;
        memcpy(&bits, &y, sizeof y);
        narrow_lanes bytes = low_bytes(bits + (uint32_t)offset);
        memcpy(to + i, &bytes, sizeof bytes);
    }
    for (; i < n; i++) {
        float y = x[i] * inverse + MAGIC;
        uint32_t bits;
        memcpy(&bits, &y, 4);
        to[i] = (uint8_t)(bits + (uint32_t)offset);
    }
    return high / 127.0f;
}

/* Weight [O, I] to panels, with scales [O] and 128 times the sums [O]. Returns 0, or 1 when memory ran out. */
int penstock_pack_int8(const void *weight, void *packed, float *scales, int32_t *sums, long outputs, long inputs,
                       long half, long threads) {
    long panels = divide_up(outputs, PANEL), deep = divide_up(inputs, 4);
    int failed = 0;
    ask_for_large_pages(packed, panels * PANEL * deep * 4);
    #pragma omp parallel num_threads((int)threads) reduction(| : failed) if (threads > 1)
    {
        float *row = cache_lines(inputs * 4);
        uint8_t *bytes = cache_lines(deep * 4);
        failed |= !row || !bytes;
        #pragma omp for schedule(static)
        for (long p = 0; p < panels; p++) {
            uint32_t *to = (uint32_t *)packed + p * PANEL * deep;
            long n = least(PANEL, outputs - p * PANEL);
            if (n < PANEL) memset(to, 0, PANEL * deep * 4);
            for (long i = 0; i < n && !failed; i++) {
                long output = p * PANEL + i;
                const float *from = (const float *)weight + output * inputs;
                if (half) {
                    for (long k = 0; k < inputs; k++) row[k] = load(weight, output * inputs + k, 1);
                    from = row;
                }
                memset(bytes + deep * 4 - 4, 0, 4);
                scales[output] = quantize(from, inputs, bytes, 0);
                int32_t sum = 0;
                for (long k = 0; k < inputs; k++) sum += (int8_t)bytes[k];
                sums[output] = 128 * sum;
                for (long k = 0; k < deep; k++) memcpy(to + k * PANEL + i, bytes + 4 * k, 4);
            }
        }
        free(row);
        free(bytes);
    }
    return failed;
}

INLINE void tile8(const uint8_t *x, long stride, const uint8_t *w, long deep, int32_t *sums, const char *ahead,
                  long step, const int mr) {
    ints left[TILE], right[TILE];
    #pragma GCC unroll 16
    for (int r = 0; r < mr; r++) left[r] = right[r] = (ints){0};
    const uint8_t *three[5] = {x, x + 3 * stride, x + 6 * stride, x + 9 * stride, x + 12 * stride};
    #define STEP(k)                                                                                    \
        {                                                                                              \
            words a = load_words(w + (k) * PANEL * 4), b = load_words(w + (k) * PANEL * 4 + LANES * 4); \
            _Pragma("GCC unroll 16") for (int r = 0; r < mr; r++) {                                    \
                words y = every(three[r / 3] + r % 3 * stride + 4 * (k));                              \
                left[r] = dot(left[r], y, a);                                                          \
                right[r] = dot(right[r], y, b);                                                        \
            }                                                                                          \
        }
    long k = 0;
    for (; k + 4 <= deep; k += 4) {
        for (long i = 0; i < step; i += 64) __builtin_prefetch(ahead + i, 0, 3);
        ahead += step;
        STEP(0) STEP(1) STEP(2) STEP(3)
        w += 4 * PANEL * 4;
        #pragma GCC unroll 5
        for (int g = 0; g < (mr + 2) / 3; g++) three[g] += 16;
    }
    for (; k < deep; k++) {
        STEP(0)
        w += PANEL * 4;
        #pragma GCC unroll 5
        for (int g = 0; g < (mr + 2) / 3; g++) three[g] += 4;
    }
    #undef STEP
    #pragma GCC unroll 16
    for (int r = 0; r < mr; r++) {
        memcpy(sums + r * PANEL, &left[r], sizeof left[r]);
        memcpy(sums + r * PANEL + LANES, &right[r], sizeof right[r]);
    }
}

typedef void tile8_of(const uint8_t *, long, const uint8_t *, long, int32_t *, const char *, long);
#define TILE8_OF(mr)                                                                                             \
    static __attribute__((noinline)) void tile8_##mr(const uint8_t *x, long stride, const uint8_t *w, long deep, \
                                                     int32_t *sums, const char *ahead, long step) {              \
        tile8(x, stride, w, deep, sums, ahead, step, mr);                                                        \
    }
TILE8_OF(1) TILE8_OF(2)
#if TILE > 2
TILE8_OF(3) TILE8_OF(4) TILE8_OF(5) TILE8_OF(6) TILE8_OF(7) TILE8_OF(8) TILE8_OF(9) TILE8_OF(10) TILE8_OF(11)
TILE8_OF(12) TILE8_OF(13) TILE8_OF(14)
#endif
static tile8_of *const TILES8[TILE + 1] = {
    NULL, tile8_1, tile8_2,
#if TILE > 2
    tile8_3, tile8_4, tile8_5, tile8_6, tile8_7, tile8_8, tile8_9, tile8_10, tile8_11, tile8_12, tile8_13, tile8_14,
#endif
};

/* What rows become: bytes, `stride` apart, then the scale of each. */
INLINE long stride8(long inputs) { return apart(round_up(inputs, 64)); }

void penstock_multiply_int8(Team *team, const Matrix *m, const float *x, float *out, long rows, void *room) {
    uint8_t *bytes = room;
    long inputs = m->inputs, panels = divide_up(m->outputs, PANEL), deep = divide_up(inputs, 4), stride = stride8(inputs);
    long blocks = divide_up(rows, most(TILE, ROWS_BYTES / stride)), chunk = share(panels, team->threads), got;
    float *row_scales = (float *)(bytes + rows * stride);
    int32_t sums[TILE * PANEL] __attribute__((aligned(64)));
    float real[TILE * PANEL] __attribute__((aligned(64)));
    for (long r = team->me; r < rows; r += team->threads)
        row_scales[r] = quantize(x + r * inputs, inputs, bytes + r * stride, 128);
    penstock_barrier(team);
    for (long b = 0; b < blocks; b++) {
        long row = part_start(rows, blocks, b), count = part_start(rows, blocks, b + 1) - row;
        long tiles = divide_up(count, TILE), step = 4 * PANEL * 4 / tiles;
        penstock_deal(team);
        for (long first; (first = penstock_take(team, panels, chunk, &got)) >= 0;)
            for (long panel = first; panel < first + got; panel++) {
                const uint8_t *w = (const uint8_t *)m->packed + panel * deep * PANEL * 4;
                long o = panel * PANEL, n = least(PANEL, m->outputs - o);
                float scale[PANEL] = {0};
                int32_t shift[PANEL] = {0};
                memcpy(scale, m->scales + o, n * 4);
                memcpy(shift, m->sums + o, n * 4);
                for (long t = 0; t < tiles; t++) {
                    long from = row + part_start(count, tiles, t), mr = row + part_start(count, tiles, t + 1) - from;
                    const char *ahead = (const char *)w + (tiles == 1 ? AHEAD : deep * PANEL * 4 + t * (deep / 4) * step);
                    TILES8[mr](bytes + from * stride, stride, w, deep, sums, ahead, step);
                    for (long r = 0; r < mr; r++) {
                        #pragma omp simd
                        for (long i = 0; i < PANEL; i++)
                            real[r * PANEL + i] =
                                (float)(sums[r * PANEL + i] - shift[i]) * scale[i] * row_scales[from + r];
                    }
                    finish(out, from, m->outputs, o, n, real, mr, m->bias, 0);
                }
            }
        penstock_barrier(team);
    }
}

size_t penstock_room_int8(const Matrix *m, long rows) { return (size_t)(rows * stride8(m->inputs) + rows * 4); }

/* x [rows, inputs] float times int8 panels, plus bias, to out [rows, outputs] float. Returns 0, or 1 when memory ran
 * out. */
int penstock_product_int8(const float *x, const uint8_t *packed, const float *scales, const int32_t *weight_sums,
                          const float *bias, float *out, long rows, long inputs, long outputs, long threads) {
    Matrix m = {packed, bias, scales, weight_sums, outputs, inputs, INT8};
    PRODUCT_ALONE(m, penstock_room_int8(&m, rows), penstock_multiply_int8(&team, &m, x, out, rows, room))
}
