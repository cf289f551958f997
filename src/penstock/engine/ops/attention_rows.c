/* Attention of few queries: each is a row, its scores are dot products along the head. */
#include "attention.h"

#define ROWS 4                 /* rows that share a pass over values */
#define SCORES (CHUNK + LANES) /* of a row: a piece is written as whole vectors */

INLINE void fetch(const float *p, long floats) {
    for (long i = 0; i < floats; i += LANES) __builtin_prefetch(p + i);
}

/* q . k for 16 tokens. Rows are `strips` vectors long. */
INLINE vec scores(const float *q, const float *keys, const int strips) {
    vec part[LANES];
    #pragma GCC unroll 16
    for (int t = 0; t < LANES; t++) {
        vec dot = load_vec(q) * load_vec(keys + (long)t * strips * LANES);
        #pragma GCC unroll 8
        for (int s = 1; s < strips; s++)
            dot += load_vec(q + s * LANES) * load_vec(keys + ((long)t * strips + s) * LANES);
        part[t] = dot;
    }
    return sums(part);
}

/* The same for fewer, one by one. */
static __attribute__((noinline)) void last_scores(float *p, const float *q, const float *keys, int strips, int tokens) {
    for (int t = 0; t < tokens; t++, keys += strips * LANES) {
        vec dot = {0};
        for (int s = 0; s < strips; s++) dot += load_vec(q + s * LANES) * load_vec(keys + s * LANES);
        float sum = 0;
        for (int i = 0; i < LANES; i++) sum += dot[i];
        p[t] = sum;
    }
}

/* out[row] += sum over tokens of p[row][t] * values[t], for `rows` rows and `strips` vectors of them. */
INLINE void row_values(const Chunk *c, float *out, const float *p, long width, long from, const int rows,
                       const int strips) {
    vec sum[ROWS][4];
    #pragma GCC unroll 4
    for (int r = 0; r < rows; r++)
        #pragma GCC unroll 4
        for (int s = 0; s < strips; s++) sum[r][s] = load_vec(out + r * width + from + s * LANES);
    for (int block = 0, done = 0; done < c->tokens; block++) {
        const float *v = c->values[block] + from;
        int here = piece_of(c, block, done);
        for (int t = done; t < done + here; t++, v += width) {
            #pragma GCC unroll 4
            for (int r = 0; r < rows; r++)
                #pragma GCC unroll 4
                for (int s = 0; s < strips; s++) sum[r][s] += p[r * SCORES + t] * load_vec(v + s * LANES);
        }
        done += here;
    }
    #pragma GCC unroll 4
    for (int r = 0; r < rows; r++)
        #pragma GCC unroll 4
        for (int s = 0; s < strips; s++) store_vec(out + r * width + from + s * LANES, sum[r][s]);
}

#define ROW_VALUES(name, rows, strips)                                                                               \
    static __attribute__((noinline)) void name(const Chunk *c, float *out, const float *p, long width, long from) {  \
        row_values(c, out, p, width, from, rows, strips);                                                            \
    }
ROW_VALUES(row_values_1, 1, 1)
ROW_VALUES(row_values_14, 1, 4)
ROW_VALUES(row_values_24, 2, 4)
ROW_VALUES(row_values_34, 3, 4)
ROW_VALUES(row_values_44, 4, 4)
static void (*const values_of[ROWS])(const Chunk *, float *, const float *, long, long) = {
    row_values_14, row_values_24, row_values_34, row_values_44};

/* Rows from `row` on against a chunk: an online softmax. Totals stay apart by lane until the end. */
INLINE void row_chunk(Scratch *w, const Chunk *c, int row, int rows, const int strips) {
    static const lanes number = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
    long width = (long)strips * LANES;
    float *p = w->p, *q = w->q + row * width, *out = w->out + row * width;
    for (int block = 0, done = 0; done < c->tokens; block++) {
        int here = piece_of(c, block, done);
        for (int t = 0; t < here; t += LANES) {
            const float *keys = c->keys[block] + t * width;
            fetch(c->values[block] + t * width, least(here - t, LANES) * width);
            for (int r = 0; r < rows; r++) {
                float *to = p + r * SCORES + done + t;
                if (here - t >= LANES) store_vec(to, scores(q + r * width, keys, strips));
                else last_scores(to, q + r * width, keys, strips, here - t);
            }
        }
        done += here;
    }
    int vectors = (c->tokens + LANES - 1) / LANES;
    for (int r = 0; r < rows; r++) {
        float *s = p + r * SCORES, peak = w->peak[row + r], high = peak;
        int first = w->first[row + r] - c->token, last = least(w->last[row + r] - c->token, c->tokens);
        vec highs = all(peak), total = load_vec(w->totals + (row + r) * LANES);
        for (int i = 0; i < vectors; i++) {
            vec one = load_vec(s + i * LANES);
            if (w->softcap) one = w->softcap * hyperbolic_tangent(one / w->softcap);
            lanes at_i = number + i * LANES;
            store_vec(s + i * LANES, one);
            highs = larger(choose((at_i >= first) & (at_i < last), one, all(NONE)), highs);
        }
        for (int i = 0; i < LANES; i++) high = highs[i] > high ? highs[i] : high;
        vec shrink = exponential(all(peak - high));
        total *= shrink;
        for (int i = 0; i < vectors; i++) {
            lanes at_i = number + i * LANES;
            vec weight = (vec)((lanes)exponential(load_vec(s + i * LANES) - high) & (at_i >= first) & (at_i < last));
            total += weight;
            store_vec(s + i * LANES, weight);
        }
        store_vec(w->totals + (row + r) * LANES, total);
        w->peak[row + r] = high;
        for (int i = 0; i < strips; i++)
            store_vec(out + r * width + i * LANES, load_vec(out + r * width + i * LANES) * shrink);
    }
    int s = 0;
    for (; s + 4 <= strips; s += 4) values_of[rows - 1](c, out, p, width, s * LANES);
    for (; s < strips; s++)
        for (int r = 0; r < rows; r++) row_values_1(c, out + r * width, p + r * SCORES, width, s * LANES);
}

/* The common head widths (16, 32, 64, 128) have code of their own. */
typedef void row_chunks(Scratch *, const Chunk *, int, int);
#define ROW_CHUNKS(name, fixed)                                                                                      \
    static __attribute__((noinline)) void name(Scratch *w, const Chunk *c, int count, int strips) {                  \
        (void)strips;                                                                                                \
        for (int row = 0; row < count; row += ROWS) row_chunk(w, c, row, least(count - row, ROWS), fixed);           \
    }
ROW_CHUNKS(row_chunks_16, 1)
ROW_CHUNKS(row_chunks_32, 2)
ROW_CHUNKS(row_chunks_64, 4)
ROW_CHUNKS(row_chunks_128, 8)
ROW_CHUNKS(row_chunks_any, strips)

INLINE void few_queries(const Attention *a, Scratch *w, const Item *item, const int half) {
    int head = a->head, width = width_of(a), strips = width / LANES, count = item->to - item->from;
    for (int m = 0; m < count; m++)
        widen_row(w->q + (long)m * width, at(a->qkv, query_of(a, item, m).column, half), a->scale, head, width, half);
    memset(w->out, 0, sizeof(float) * count * width);
    memset(w->totals, 0, sizeof(float) * count * LANES);
    row_chunks *attend = strips == 1   ? row_chunks_16
                         : strips == 2 ? row_chunks_32
                         : strips == 4 ? row_chunks_64
                         : strips == 8 ? row_chunks_128
                                       : row_chunks_any;
    for (int token = item->low; token < item->high; token += CHUNK) {
        Chunk chunk;
        find_chunk(a, w, item, token, width, &chunk, half);
        attend(w, &chunk, count, strips);
    }
    for (int m = 0; m < count; m++) {
        float total = 0;
        for (int i = 0; i < LANES; i++) total += w->totals[m * LANES + i];
        finish(a, item, query_of(a, item, m), w->out + (long)m * width, w->peak[m], total, half);
    }
}

void penstock_attend_rows(const Attention *a, Scratch *w, const Item *item, int half) {
    if (half) few_queries(a, w, item, 1);
    else few_queries(a, w, item, 0);
}
