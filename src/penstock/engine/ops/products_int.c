/* Products in whole numbers: int8 weights with int8 activations, and int4 weights with int8 activations in groups.
 *
 * int8: w = scale of the output * q, x = scale of the row * q, both from the largest magnitude. Four k make a 32-bit
 * word, [k / 4][32 outputs][4]. The CPU multiplies unsigned by signed bytes, so 128 is added to an activation and
 * 128 times the sum of the output's weights taken off the result.
 * int4: groups of 32 k have a scale for each output (bfloat16) and for each row; w = scale * (q - 8), q from 0 to 15.
 * A group is four vectors for each 16 outputs, step j of four k in the low and step 4 + j in the high halves of its
 * bytes, then the scales of all 32 outputs, output i below and 16 + i above in a word.
 * Sums of whole numbers are exact, and those of groups are added in their order: rows do not depend on each other.
 * Sources: LLM.int8(), Dettmers et al., NeurIPS 2022, for scales by output and row; groups of 32 as in GGML's q4_0.
 */
#include "products.h"

#include <math.h>
#ifdef __AVX512F__
#include <immintrin.h>
#endif

#if defined(__AVX512F__)
#define TILE 14
#define TILE4 8 /* eight vectors of unpacked weights share the registers */
#else
#define TILE 2
#define TILE4 1
#endif
#define GROUP 32
#define GROUP_BYTES (PANEL * GROUP / 2 + PANEL * 2)

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

INLINE int32_t total(ints v) {
#ifdef __AVX512F__
    return _mm512_reduce_add_epi32((__m512i)v);
#else
    int32_t each[LANES], sum = 0;
    memcpy(each, &v, sizeof v);
    #pragma omp simd reduction(+ : sum)
    for (int i = 0; i < LANES; i++) sum += each[i];
    return sum;
#endif
}

INLINE words larger_word(words a, words b) {
    words first = (words)(a > b);
    return (a & first) | (b & ~first);
}

INLINE float as_float(uint32_t u) { float f; memcpy(&f, &u, 4); return f; }

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

/* ---- int8 ---- */

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

static void multiply8(Team *team, const Matrix *m, const float *x, float *out, long rows, uint8_t *bytes) {
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

/* ---- int4 ---- */

/* Whole numbers from -8 to 7, ties to even. */
INLINE vec round4(vec x) {
    vec q = (x + MAGIC) - MAGIC;
    words low = (words)(q < -8.0f), high = (words)(q > 7.0f);
    vec least_q = -8.0f - (vec){0}, most_q = 7.0f - (vec){0};
    return as_floats(((words)q & ~low & ~high) | ((words)least_q & low) | ((words)most_q & high));
}

INLINE float sum_of(vec v) {
#ifdef __AVX512F__
    return _mm512_reduce_add_ps((__m512)v);
#else
    float each[LANES], sum = 0;
    store_vec(each, v);
    for (int i = 0; i < LANES; i++) sum += each[i];
    return sum;
#endif
}

/* A group of 32 to `q` and its scale, which a bfloat16 holds: of a few that make the value of the largest magnitude -8,
 * or somewhat less, the one with the least squared error. */
INLINE float quantize4(const float *x, vec *q) {
    static const float levels[] = {-8.0f, -8.5f, -7.5f, -7.0f, -6.5f, 7.0f};
    vec a = load_vec(x), b = load_vec(x + LANES);
    words sign = 0x7fffffffu - (words){0}, sizes = larger_word((words)a & sign, (words)b & sign);
    float high = as_float(highest(sizes)), extreme = high, best = 0, least_error = INFINITY;
    for (long i = 0; i < GROUP; i++) extreme = x[i] == -high ? -high : extreme;
    for (unsigned long c = 0; c < sizeof levels / sizeof *levels; c++) {
        float scale = widen(narrow(extreme / levels[c])), inverse = scale != 0 ? 1.0f / scale : 0.0f;
        vec left = round4(a * inverse), right = round4(b * inverse), d = left * scale - a, e = right * scale - b;
        float error = sum_of(d * d + e * e);
        if (error < least_error) {
            least_error = error;
            best = scale;
            q[0] = left;
            q[1] = right;
        }
    }
    return best;
}

/* Weight [O, I], I a multiple of 32, to panels of groups. Returns 0, or 1 when memory ran out. */
int penstock_pack_int4(const void *weight, uint8_t *packed, long outputs, long inputs, long half, long threads) {
    long panels = divide_up(outputs, PANEL), groups = inputs / GROUP;
    ask_for_large_pages(packed, panels * groups * GROUP_BYTES);
    #pragma omp parallel for num_threads((int)threads) schedule(static) if (threads > 1)
    for (long p = 0; p < panels; p++)
        for (long g = 0; g < groups; g++) {
            uint8_t *to = packed + (p * groups + g) * GROUP_BYTES;
            uint16_t *scales = (uint16_t *)(to + PANEL * GROUP / 2);
            memset(to, 0, GROUP_BYTES);
            for (long i = 0; i < PANEL && p * PANEL + i < outputs; i++) {
                float x[GROUP];
                vec q[2] = {{0}};
                long at = (p * PANEL + i) * inputs + g * GROUP;
                if (half) for (long k = 0; k < GROUP; k++) x[k] = load(weight, at + k, 1);
                else memcpy(x, (const float *)weight + at, sizeof x);
                scales[i % LANES * 2 + i / LANES] = narrow(quantize4(x, q));
                vec y = q[0] + (MAGIC + 8.0f), z = q[1] + (MAGIC + 8.0f);
                narrow_lanes low = low_bytes((words)y), high = low_bytes((words)z), both = low | (high << 4);
                char four[LANES];
                memcpy(four, &both, sizeof both);
                uint8_t *side = to + i / LANES * LANES * GROUP / 2 + i % LANES * 4;
                for (long j = 0; j < 4; j++) memcpy(side + j * 64, four + 4 * j, 4);
            }
        }
    return 0;
}

/* What rows become, tile by tile: for each group the 32 signed bytes of each row of the tile, then the scale of each,
 * then -8 times the sum of each; so that a tile walks through all of it in order. */
#define ROW_BYTES (GROUP + 8)

INLINE void quantize_row4(char *tile, const float *x, long groups, long mr, long r) {
    for (long g = 0; g < groups; g++, x += GROUP, tile += mr * ROW_BYTES) {
        words a = load_words(x), b = load_words(x + LANES), sign = 0x7fffffffu - (words){0};
        float high = as_float(highest(larger_word(a & sign, b & sign))), inverse = high > 0 ? 127.0f / high : 0.0f;
        float scale = high / 127.0f;
        vec y = as_floats(a) * inverse + MAGIC, z = as_floats(b) * inverse + MAGIC;
        memcpy(&a, &y, sizeof a);
        memcpy(&b, &z, sizeof b);
        narrow_lanes bytes[2] = {low_bytes(a), low_bytes(b)};
        int32_t shift = -8 * total((ints)(a + b - 2 * MAGIC_BITS));
        memcpy(tile + r * GROUP, bytes, GROUP);
        memcpy(tile + mr * GROUP + 4 * r, &scale, 4);
        memcpy(tile + mr * (GROUP + 4) + 4 * r, &shift, 4);
    }
}

INLINE void tile4(const char *x, long groups, const uint8_t *w, float *sums, const int mr) {
    vec left[TILE4], right[TILE4];
    #pragma GCC unroll 8
    for (int r = 0; r < mr; r++) left[r] = right[r] = (vec){0};
    for (long g = 0; g < groups; g++, w += GROUP_BYTES, x += mr * ROW_BYTES) {
        words both = load_words(w + PANEL * GROUP / 2);
        if (mr <= 2)
            for (long i = 0; i < GROUP_BYTES; i += 64) __builtin_prefetch(w + AHEAD + i, 0, 3);
        #pragma GCC unroll 2
        for (int side = 0; side < 2; side++) {
            words q[8];
            /* Activations are read again for the second side: kept, they would not fit the registers. */
            __asm__ volatile("" ::: "memory");
            #pragma GCC unroll 4
            for (int j = 0; j < 4; j++) {
                words v = load_words(w + side * LANES * GROUP / 2 + j * 64);
                q[j] = v & 0x0f0f0f0fu;
                q[4 + j] = v >> 4 & 0x0f0f0f0fu;
            }
            vec scale = as_floats(side ? both & 0xffff0000u : both << 16);
            #pragma GCC unroll 8
            for (int r = 0; r < mr; r++) {
                float row_scale;
                memcpy(&row_scale, x + mr * GROUP + 4 * r, 4);
                ints s = (ints)every(x + mr * (GROUP + 4) + 4 * r);
                #pragma GCC unroll 8
                for (int j = 0; j < 8; j++) s = dot(s, q[j], every(x + r * GROUP + 4 * j));
                vec part = __builtin_convertvector(s, vec) * (scale * row_scale);
                if (side) right[r] += part;
                else left[r] += part;
            }
        }
    }
    #pragma GCC unroll 8
    for (int r = 0; r < mr; r++) {
        store_vec(sums + r * PANEL, left[r]);
        store_vec(sums + r * PANEL + LANES, right[r]);
    }
}

typedef void tile4_of(const char *, long, const uint8_t *, float *);
#define TILE4_OF(mr)                                                                                               \
    static __attribute__((noinline)) void tile4_##mr(const char *x, long groups, const uint8_t *w, float *sums) {  \
        tile4(x, groups, w, sums, mr);                                                                             \
    }
TILE4_OF(1)
#if TILE4 > 1
TILE4_OF(2) TILE4_OF(3) TILE4_OF(4) TILE4_OF(5) TILE4_OF(6) TILE4_OF(7) TILE4_OF(8)
#endif
static tile4_of *const TILES4[TILE4 + 1] = {
    NULL, tile4_1,
#if TILE4 > 1
    tile4_2, tile4_3, tile4_4, tile4_5, tile4_6, tile4_7, tile4_8,
#endif
};

static void multiply4(Team *team, const Matrix *m, const float *x, float *out, long rows, char *quantized) {
    long panels = divide_up(m->outputs, PANEL), groups = m->inputs / GROUP, tiles = divide_up(rows, TILE4);
    long row_bytes = groups * ROW_BYTES, tiles_at_once = most(1, ROWS_BYTES / (row_bytes * TILE4));
    long chunk = share(panels, team->threads), got;
    float sums[TILE4 * PANEL] __attribute__((aligned(64)));
    for (long r = team->me; r < rows; r += team->threads) {
        long t = part_of(rows, tiles, r), first = part_start(rows, tiles, t), mr = part_start(rows, tiles, t + 1) - first;
        quantize_row4(quantized + first * row_bytes, x + r * m->inputs, groups, mr, r - first);
    }
    penstock_barrier(team);
    for (long first_tile = 0; first_tile < tiles; first_tile += tiles_at_once) {
        long last_tile = least(tiles, first_tile + tiles_at_once);
        penstock_deal(team);
        for (long first; (first = penstock_take(team, panels, chunk, &got)) >= 0;)
            for (long panel = first; panel < first + got; panel++)
                for (long t = first_tile; t < last_tile; t++) {
                    long row = part_start(rows, tiles, t), mr = part_start(rows, tiles, t + 1) - row;
                    TILES4[mr](quantized + row * row_bytes, groups,
                               (const uint8_t *)m->packed + panel * groups * GROUP_BYTES, sums);
                    finish(out, row, m->outputs, panel * PANEL, least(PANEL, m->outputs - panel * PANEL), sums, mr,
                           m->bias, 0);
                }
        penstock_barrier(team);
    }
}

size_t penstock_room_int(const Matrix *m, long rows) {
    if (m->kind == INT8) return (size_t)(rows * stride8(m->inputs) + rows * 4);
    return (size_t)(rows * (m->inputs / GROUP) * ROW_BYTES);
}

void penstock_multiply_int(Team *team, const Matrix *m, const float *x, float *out, long rows, void *room) {
    if (m->kind == INT8) multiply8(team, m, x, out, rows, room);
    else multiply4(team, m, x, out, rows, room);
}

/* x [rows, inputs] float times int8 panels, plus bias, to out [rows, outputs] float. Returns 0, or 1 when memory ran
 * out. */
int penstock_product_int8(const float *x, const uint8_t *packed, const float *scales, const int32_t *weight_sums,
                          const float *bias, float *out, long rows, long inputs, long outputs, long threads) {
    Matrix m = {packed, bias, scales, weight_sums, outputs, inputs, INT8};
    PRODUCT_ALONE(m, penstock_room_int(&m, rows), penstock_multiply_int(&team, &m, x, out, rows, room))
}

/* The same with int4 panels. */
int penstock_product_int4(const float *x, const uint8_t *packed, const float *bias, float *out, long rows, long inputs,
                          long outputs, long threads) {
    Matrix m = {packed, bias, NULL, NULL, outputs, inputs, INT4};
    PRODUCT_ALONE(m, penstock_room_int(&m, rows), penstock_multiply_int(&team, &m, x, out, rows, room))
}
