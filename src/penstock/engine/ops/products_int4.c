/* Products of int4 weights with int8 activations, both in groups.
 *
 * Groups of 32 k have a scale for each output (bfloat16) and for each row; w = scale * (q - 8), q from 0 to 15. A group
 * is four vectors for each 16 outputs, step j of four k in the low and step 4 + j in the high halves of its bytes, then
 * the scales of all 32 outputs, output i below and 16 + i above in a word.
 * Sums of whole numbers are exact, and those of groups are added in their order: rows do not depend on each other.
 * Source: groups of 32 as in GGML's q4_0.
 */
#include "products_int.h"

#include <math.h>

#ifdef __AVX512F__
#define TILE 8 /* eight vectors of unpacked weights share the registers */
#else
#define TILE 1
#endif
#define GROUP 32
#define GROUP_BYTES (PANEL * GROUP / 2 + PANEL * 2)

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
    vec left[TILE], right[TILE];
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
#if TILE > 1
TILE4_OF(2) TILE4_OF(3) TILE4_OF(4) TILE4_OF(5) TILE4_OF(6) TILE4_OF(7) TILE4_OF(8)
#endif
static tile4_of *const TILES4[TILE + 1] = {
    NULL, tile4_1,
#if TILE > 1
    tile4_2, tile4_3, tile4_4, tile4_5, tile4_6, tile4_7, tile4_8,
#endif
};

void penstock_multiply_int4(Team *team, const Matrix *m, const float *x, float *out, long rows, void *room) {
    char *quantized = room;
    long panels = divide_up(m->outputs, PANEL), groups = m->inputs / GROUP, tiles = divide_up(rows, TILE);
    long row_bytes = groups * ROW_BYTES, tiles_at_once = most(1, ROWS_BYTES / (row_bytes * TILE));
    long chunk = share(panels, team->threads), got;
    float sums[TILE * PANEL] __attribute__((aligned(64)));
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

size_t penstock_room_int4(const Matrix *m, long rows) { return (size_t)(rows * (m->inputs / GROUP) * ROW_BYTES); }

/* x [rows, inputs] float times int4 panels, plus bias, to out [rows, outputs] float. Returns 0, or 1 when memory ran
 * out. */
int penstock_product_int4(const float *x, const uint8_t *packed, const float *bias, float *out, long rows, long inputs,
                          long outputs, long threads) {
    Matrix m = {packed, bias, NULL, NULL, outputs, inputs, INT4};
    PRODUCT_ALONE(m, penstock_room_int4(&m, rows), penstock_multiply_int4(&team, &m, x, out, rows, room))
}
