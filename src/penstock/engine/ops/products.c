/* Products with packed weights in float32 (also in 28 bits) or bfloat16, and with int8 weights and float activations.
 *
 * Narrow weights are widened a piece of a panel at a time, which then serves all rows from the cache. Activations and
 * sums are float; a result is rounded once, to the activations' type.
 */
#include "products_few.h"

#if PART == 16
#define TILE 14 /* two vectors of sums for each row, two of weights, one activation: 31 of 32 registers */
#elif PART == 8 || defined(__aarch64__)
#define TILE 3 /* 12 of sums, of 16 registers; 24 of 32 */
#else
#define TILE 1
#endif
#define PARTS (PANEL / PART)

#define DEPTH 768 /* k at a time: a piece of a panel (96 KiB in float) and of the rows fit the second cache */
#define WIDE_DEPTH (DEPTH / 4) /* of narrow weights: what was widened stays in the first */
#define BLOCK_ROWS (12 * TILE)
#define MOST_NEAR 16 /* rows */

/* x [mr, depth] times a piece of a panel [depth, 32]: added to `sums` [mr, 32] if `more`, else in their place. From
 * `ahead`, `step` bytes for every four k are fetched for the piece after this one. */
INLINE void tile(const float *x, long stride, const float *w, long depth, float *sums, int more, const char *ahead,
                 long step, const int mr) {
    part sum[TILE][PARTS];
    #pragma GCC unroll 16
    for (int r = 0; r < mr; r++)
        #pragma GCC unroll 8
        for (int p = 0; p < PARTS; p++) sum[r][p] = more ? load_part(sums + r * PANEL + p * PART) : (part){0};
    /* Three rows to a pointer: x86 adds one or two strides for nothing. */
    const float *three[5] = {x, x + 3 * stride, x + 6 * stride, x + 9 * stride, x + 12 * stride};
    #define STEP(k)                                                                                              \
        {                                                                                                        \
            part of_k[PARTS];                                                                                    \
            _Pragma("GCC unroll 8") for (int p = 0; p < PARTS; p++) of_k[p] = load_part(w + (k) * PANEL + p * PART); \
            _Pragma("GCC unroll 16") for (int r = 0; r < mr; r++) {                                              \
                float y = three[r / 3][r % 3 * stride + (k)];                                                    \
                _Pragma("GCC unroll 8") for (int p = 0; p < PARTS; p++) sum[r][p] += y * of_k[p];                \
            }                                                                                                    \
        }
    long k = 0;
    for (; k + 4 <= depth; k += 4) {
        for (long i = 0; i < step; i += 64) __builtin_prefetch(ahead + i, 0, 2);
        ahead += step;
        STEP(0) STEP(1) STEP(2) STEP(3)
        w += 4 * PANEL;
        #pragma GCC unroll 5
        for (int g = 0; g < (mr + 2) / 3; g++) three[g] += 4;
    }
    for (; k < depth; k++) {
        STEP(0)
        w += PANEL;
        #pragma GCC unroll 5
        for (int g = 0; g < (mr + 2) / 3; g++) three[g]++;
    }
    #pragma GCC unroll 16
    for (int r = 0; r < mr; r++)
        #pragma GCC unroll 8
        for (int p = 0; p < PARTS; p++) store_part(sums + r * PANEL + p * PART, sum[r][p]);
}

typedef void tile_of(const float *, long, const float *, long, float *, int, const char *, long);
#define TILE_OF(mr)                                                                                                \
    static __attribute__((noinline)) void tile_##mr(const float *x, long stride, const float *w, long depth,       \
                                                    float *sums, int more, const char *ahead, long step) {         \
        tile(x, stride, w, depth, sums, more, ahead, step, mr);                                                    \
    }
TILE_OF(1)
#if TILE > 1
TILE_OF(2) TILE_OF(3)
#endif
#if TILE > 3
TILE_OF(4) TILE_OF(5) TILE_OF(6) TILE_OF(7) TILE_OF(8) TILE_OF(9) TILE_OF(10) TILE_OF(11) TILE_OF(12) TILE_OF(13) TILE_OF(14)
#endif
static tile_of *const TILES[TILE + 1] = {
    NULL, tile_1,
#if TILE > 1
    tile_2, tile_3,
#endif
#if TILE > 3
    tile_4, tile_5, tile_6, tile_7, tile_8, tile_9, tile_10, tile_11, tile_12, tile_13, tile_14,
#endif
};

/* Weight [O, I] to panels of the same type. Two bfloat16 share a 32-bit word: output i below, output 16 + i above. */
void penstock_pack(const void *weight, void *packed, long outputs, long inputs, long half, long threads) {
    long panels = divide_up(outputs, PANEL), bytes = half ? 2 : 4;
    ask_for_large_pages(packed, panels * PANEL * inputs * bytes);
    #pragma omp parallel for num_threads((int)threads) if (threads > 1)
    for (long p = 0; p < panels; p++) {
        long n = least(PANEL, outputs - p * PANEL);
        char *to = (char *)packed + p * PANEL * inputs * bytes;
        if (n < PANEL) memset(to, 0, PANEL * inputs * bytes);
        for (long k = 0; k < inputs; k++)
            for (long i = 0; i < n; i++) {
                long from = (p * PANEL + i) * inputs + k;
                if (half) ((uint16_t *)to)[k * PANEL + i % LANES * 2 + i / LANES] = ((const uint16_t *)weight)[from];
                else ((float *)to)[k * PANEL + i] = ((const float *)weight)[from];
            }
    }
}

/* `depth` k of a panel, from the k-th, as floats. */
INLINE void widen_bfloat16(float *to, const uint16_t *panel, long k, long depth) {
    for (long i = 0; i < depth; i++)
        for (int p = 0; p < LANES; p += PART) {
            part_words both = load_part_words(panel + (k + i) * PANEL + 2 * p);
            store_part(to + i * PANEL + p, as_part(both << 16));
            store_part(to + i * PANEL + LANES + p, as_part(both & 0xffff0000u));
        }
}

/* The same of int8 panels (products_int8.c), where the bytes of four k make a word; k is a multiple of four. Values
 * are whole numbers: the scale of each output comes last. */
INLINE void widen_int8(float *to, const int8_t *panel, long k, long depth) {
    for (long i = 0; i < depth; i++)
        for (int p = 0; p < PANEL; p += PART) {
            part_words four = load_part_words(panel + ((k + i) / 4 * PANEL + p) * 4);
            part_ints whole = (part_ints)(four << (24 - 8 * ((k + i) & 3))) >> 24;
            store_part(to + i * PANEL + p, __builtin_convertvector(whole, part));
        }
}

typedef struct {
    const Matrix *m;
    const float *x; /* [rows, inputs], `stride` elements apart */
    void *out;
    float *partial; /* [panels, rows of a block, 32]: sums between pieces of k, where there are several */
    long stride, depth, panel_bytes, half;
    int near; /* the pieces of a panel follow each other */
} Product;

/* The sums of some rows, which are all there is to add, to `out`. */
INLINE void finish_rows(const Product *p, long panel, long row, float *sums, long mr) {
    const Matrix *m = p->m;
    long o = panel * PANEL, n = least(PANEL, m->outputs - o);
    if (m->kind == INT8_WEIGHTS)
        for (long r = 0; r < mr; r++)
            for (long i = 0; i < n; i++) sums[r * PANEL + i] *= m->scales[o + i];
    if (p->half) finish(p->out, row, m->outputs, o, n, sums, mr, m->bias, 1);
    else finish(p->out, row, m->outputs, o, n, sums, mr, m->bias, 0);
}

/* All rows of a block against one piece of a panel. */
INLINE void block(const Product *p, long panel, long row, long count, long k, float *own, float *wide) {
    const Matrix *m = p->m;
    long depth = least(p->depth, m->inputs - k), tiles = divide_up(count, TILE), last = k + depth == m->inputs;
    const char *at = (const char *)m->packed + panel * p->panel_bytes;
    const float *w = (const float *)at + k * PANEL;
#ifdef __AVX512F__
    if (count <= few_rows(m->kind)) {
        long groups = divide_up(count, FEW_ROWS);
        for (long g = 0; g < groups; g++) {
            long from = part_start(count, groups, g), mr = part_start(count, groups, g + 1) - from;
            float *sums = own + from * PANEL;
            FEW[m->kind][mr - 1](p->x + (row + from) * p->stride, p->stride, m, at, k, depth, sums, k > 0);
            if (last) finish_rows(p, panel, row + from, sums, mr);
        }
        return;
    }
#endif
    if (m->kind == BFLOAT16) widen_bfloat16(wide, (const uint16_t *)at, k, depth);
    if (m->kind == INT8_WEIGHTS) widen_int8(wide, (const int8_t *)at, k, depth);
    if (m->kind == FLOAT28) widen_float28(wide, m, at, k, depth);
    if (m->kind != FLOAT32) w = wide;
    /* The piece after this one: of the next panel, where k is cut. Where only one tile reads it, memory is what it waits
     * for, and it asks all the time. */
    long four_bytes = m->kind == FLOAT32 ? 4 * PANEL * 4 : few_lines(m->kind) * 64, step = four_bytes / tiles;
    const char *ahead = at + k / 4 * four_bytes + (m->kind == FLOAT28 ? HEAD_BYTES : 0);
    if (tiles > 1) ahead += p->panel_bytes;
    else ahead += m->kind == FLOAT32 ? AHEAD : depth / 4 * four_bytes;
    for (long t = 0; t < tiles; t++) {
        long from = part_start(count, tiles, t), mr = part_start(count, tiles, t + 1) - from;
        float *sums = p->partial ? p->partial + (panel * count + from) * PANEL : own;
        TILES[mr](p->x + (row + from) * p->stride + k, p->stride, w, depth, sums, k > 0, ahead + t * (depth / 4) * step,
                  step);
        if (last) finish_rows(p, panel, row + from, sums, mr);
    }
}

/* How the work is cut: elements between rows, and k at a time. */
INLINE Product shape(const Matrix *m, long rows, long half) {
    long inputs = m->inputs, wanted = apart(inputs * 4) / 4, panel_elements = PANEL * inputs;
    Product p = {.m = m, .stride = inputs, .depth = inputs, .half = half};
    if (m->kind == FLOAT32) p.panel_bytes = panel_elements * 4;
    else if (m->kind == FLOAT28) p.panel_bytes = float28_panel_bytes(inputs);
    else if (m->kind == BFLOAT16) p.panel_bytes = panel_elements * 2;
    else p.panel_bytes = PANEL * round_up(inputs, 4);
    p.near = rows <= most(TILE, few_rows(m->kind));
    if (rows <= few_rows(m->kind)) p.depth = rows <= FEW_ROWS ? inputs : least(inputs, FEW_DEPTH);
    else if (m->kind != FLOAT32 && (m->kind != FLOAT28 || rows <= TILE)) p.depth = least(inputs, WIDE_DEPTH);
    else if (rows > TILE) p.depth = round_up(divide_up(inputs, divide_up(inputs, DEPTH)), 4);
    if (half || (wanted != inputs && rows > 4)) p.stride = wanted;
    return p;
}

INLINE int copies(const Product *p) { return p->half || p->stride != p->m->inputs; }
INLINE long copy_bytes(const Product *p, long rows) { return copies(p) ? round_up(rows * p->stride * 4, 64) : 0; }

/* A panel's pieces follow each other where one block is all there is: then its sums wait on the stack. */
INLINE long partial_bytes(const Product *p, long rows) {
    if (p->depth >= p->m->inputs || p->near) return 0;
    return divide_up(p->m->outputs, PANEL) * PANEL * divide_up(rows, divide_up(rows, BLOCK_ROWS)) * 4;
}

size_t penstock_room(const Matrix *m, long rows, long half) {
    if (m->kind == INT8) return penstock_room_int8(m, rows);
    if (m->kind == INT4) return penstock_room_int4(m, rows);
    Product p = shape(m, rows, half);
    return (size_t)(copy_bytes(&p, rows) + partial_bytes(&p, rows));
}

void penstock_multiply(Team *team, const Matrix *m, const void *x, void *out, long rows, long half, void *room) {
    if (m->kind == INT8) {
        penstock_multiply_int8(team, m, x, out, rows, room);
        return;
    }
    if (m->kind == INT4) {
        penstock_multiply_int4(team, m, x, out, rows, room);
        return;
    }
    Product p = shape(m, rows, half);
    long panels = divide_up(m->outputs, PANEL), blocks = divide_up(rows, BLOCK_ROWS), inputs = m->inputs;
    long chunk = share(panels, team->threads), got;
    float own[MOST_NEAR * PANEL] __attribute__((aligned(64))), wide[DEPTH * PANEL] __attribute__((aligned(64)));
    p.x = x;
    p.out = out;
    if (copies(&p)) {
        float *copy = room;
        for (long r = team->me; r < rows; r += team->threads) {
            float *to = copy + r * p.stride;
            if (half) for (long i = 0; i < inputs; i++) to[i] = load(x, r * inputs + i, 1);
            else memcpy(to, (const float *)x + r * inputs, sizeof(float) * inputs);
        }
        p.x = copy;
        penstock_barrier(team);
    }
    if (partial_bytes(&p, rows)) p.partial = (float *)((char *)room + copy_bytes(&p, rows));
    if (p.near) {
        penstock_deal(team);
        for (long first; (first = penstock_take(team, panels, chunk, &got)) >= 0;)
            for (long panel = first; panel < first + got; panel++)
                for (long k = 0; k < inputs; k += p.depth) block(&p, panel, 0, rows, k, own, wide);
        penstock_barrier(team);
        return;
    }
    for (long b = 0; b < blocks; b++) {
        long row = part_start(rows, blocks, b), count = part_start(rows, blocks, b + 1) - row;
        for (long k = 0; k < inputs; k += p.depth) {
            penstock_deal(team);
            for (long first; (first = penstock_take(team, panels, chunk, &got)) >= 0;)
                for (long panel = first; panel < first + got; panel++) block(&p, panel, row, count, k, own, wide);
            penstock_barrier(team);
        }
    }
}

/* x [rows, inputs] times a packed weight of `kind`, plus bias, which has x's type as `out` has. Returns 0, or 1 when
 * memory ran out. */
int penstock_product(const void *x, const void *packed, const float *scales, const void *bias, void *out, long rows,
                     long inputs, long outputs, long kind, long half, long threads) {
    Matrix m = {packed, bias, scales, NULL, outputs, inputs, kind};
    PRODUCT_ALONE(m, penstock_room(&m, rows, half), penstock_multiply(&team, &m, x, out, rows, half, room))
}
