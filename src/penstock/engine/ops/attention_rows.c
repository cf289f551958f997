/* Attention of few queries: each is a row, its scores are dot products along the head.
 *
 * Memory is what this waits for, so that it is asked for what comes next all the time: all keys of an item, then, when
 * its scores are weights, all values, then the next item's keys; while one block is worked on, the one after it is
 * fetched, a line for every few instructions.
 */
#include "attention.h"

#define ROWS 4 /* rows that share a pass over values */

/* q . k for LANES tokens. Rows are `strips` vectors long. Half as many lines as the keys have are fetched from `ahead`. */
INLINE vec scores(const float *q, const float *keys, const char *ahead, const int strips) {
    vec part[LANES];
    #pragma GCC unroll 16
    for (int t = 0; t < LANES; t++) {
        #pragma GCC unroll 8
        for (int i = t * strips * LANES / 32; i < (t + 1) * strips * LANES / 32; i++) __builtin_prefetch(ahead + i * 64);
        vec dot = load_vec(q) * load_vec(keys + (long)t * strips * LANES);
        #pragma GCC unroll 8
        for (int s = 1; s < strips; s++)
            dot += load_vec(q + s * LANES) * load_vec(keys + ((long)t * strips + s) * LANES);
        part[t] = dot;
    }
    return sums(part);
}

/* The same for fewer. */
static __attribute__((noinline)) vec last_scores(const float *q, const float *keys, int strips, int tokens) {
    vec part[LANES];
    for (int t = 0; t < LANES; t++) part[t] = (vec){0};
    for (int t = 0; t < tokens; t++, keys += strips * LANES)
        for (int s = 0; s < strips; s++) part[t] += load_vec(q + s * LANES) * load_vec(keys + s * LANES);
    return sums(part);
}

/* Scores [row][LONGEST] of a chunk's tokens. */
INLINE void row_scores(Scratch *w, const Chunk *c, float *p, int rows, const int strips) {
    long width = (long)strips * LANES;
    for (int block = 0, done = 0; done < c->tokens; block++) {
        int here = piece_of(c, block, done);
        for (int t = 0; t < here; t += LANES) {
            const float *keys = c->rows[block] + t * width;
            const char *ahead = c->ahead[block] + t * width * 4;
            for (int r = 0; r < rows; r++) {
                float *to = p + r * LONGEST + done + t;
                const float *q = w->q + r * width;
                if (here - t < LANES) store_vec(to, last_scores(q, keys, strips, here - t));
                else store_vec(to, scores(q, keys, ahead, strips));
                if (r < 2) ahead += width * LANES * 2;
                if (r == 1) ahead = (const char *)p;
            }
        }
        done += here;
    }
}

/* out[row] += sum over tokens of p[row][t] * values[t], for `rows` rows and `strips` vectors of them. */
INLINE void row_values(const Chunk *c, float *out, const float *p, long width, long from, int fetching, const int rows,
                       const int strips) {
    vec sum[ROWS][4];
    long step = fetching ? width * 4 : 0;
    #pragma GCC unroll 4
    for (int r = 0; r < rows; r++)
        #pragma GCC unroll 4
        for (int s = 0; s < strips; s++) sum[r][s] = load_vec(out + r * width + from + s * LANES);
    for (int block = 0, done = 0; done < c->tokens; block++) {
        const float *v = c->rows[block] + from;
        const char *ahead = fetching ? c->ahead[block] + from * 4 : (const char *)p;
        int here = piece_of(c, block, done);
        for (int t = done; t < done + here; t++, v += width, ahead += step) {
            #pragma GCC unroll 4
            for (int s = 0; s < strips; s++) __builtin_prefetch(ahead + s * 64);
            #pragma GCC unroll 4
            for (int r = 0; r < rows; r++)
                #pragma GCC unroll 4
                for (int s = 0; s < strips; s++) sum[r][s] += p[r * LONGEST + t] * load_vec(v + s * LANES);
        }
        done += here;
    }
    #pragma GCC unroll 4
    for (int r = 0; r < rows; r++)
        #pragma GCC unroll 4
        for (int s = 0; s < strips; s++) store_vec(out + r * width + from + s * LANES, sum[r][s]);
}

typedef void values_of(const Chunk *, float *, const float *, long, long, int);
#define ROW_VALUES(name, rows, strips)                                                                              \
    static __attribute__((noinline)) void name(const Chunk *c, float *out, const float *p, long width, long from,   \
                                               int fetching) {                                                      \
        row_values(c, out, p, width, from, fetching, rows, strips);                                                 \
    }
ROW_VALUES(row_values_1, 1, 1)
ROW_VALUES(row_values_14, 1, 4)
ROW_VALUES(row_values_24, 2, 4)
ROW_VALUES(row_values_34, 3, 4)
ROW_VALUES(row_values_44, 4, 4)
static values_of *const values_of_rows[ROWS] = {row_values_14, row_values_24, row_values_34, row_values_44};

/* From a row's scores of `count` tokens to their weights; returns their sum. A row sees tokens [first, last). */
INLINE float row_weights(float *s, int count, int first, int last, float softcap, float *peak, const int masked) {
    static const lanes number = NUMBERS;
    vec highs = all(NONE), total = {0};
    for (int t = 0; t < count; t += LANES) {
        vec one = load_vec(s + t);
        if (softcap) one = softcap * hyperbolic_tangent(one / softcap);
        if (masked) one = choose((number + t >= first) & (number + t < last), one, all(NONE));
        if (softcap || masked) store_vec(s + t, one);
        highs = larger(one, highs);
    }
    float high = largest(highs), sum = 0;
    for (int t = 0; t < count; t += LANES) {
        vec weight = exponential(load_vec(s + t) - high);
        if (masked) weight = (vec)((lanes)weight & (number + t >= first) & (number + t < last));
        total += weight;
        store_vec(s + t, weight);
    }
    for (int i = 0; i < LANES; i++) sum += total[i];
    *peak = high;
    return sum;
}

/* The common head widths have code of their own. */
typedef void scores_of(Scratch *, const Chunk *, float *, int, int);
#define ROW_SCORES(name, fixed)                                                                                     \
    static __attribute__((noinline)) void name(Scratch *w, const Chunk *c, float *p, int rows, int strips) {        \
        (void)strips;                                                                                               \
        row_scores(w, c, p, rows, fixed);                                                                           \
    }
ROW_SCORES(row_scores_1, 1)
ROW_SCORES(row_scores_2, 2)
ROW_SCORES(row_scores_4, 4)
ROW_SCORES(row_scores_8, 8)
ROW_SCORES(row_scores_any, strips)

INLINE void few_queries(const Attention *a, Scratch *w, const Item *item, const Item *next, const int half) {
    int head = a->head, width = width_of(a), strips = width / LANES, rows = item->to - item->from;
    int low = item->low, count = item->high - low;
    const char *values = row_at(a, item, VALUES, low, half);
    const char *then = next ? row_at(a, next, KEYS, next->low, half) : (const char *)w->p;
    scores_of *score = strips == 1   ? row_scores_1
                       : strips == 2 ? row_scores_2
                       : strips == 4 ? row_scores_4
                       : strips == 8 ? row_scores_8
                                     : row_scores_any;
    Chunk chunk;
    for (int m = 0; m < rows; m++)
        widen_row(w->q + (long)m * width, at(a->qkv, query_of(a, item, m).column, half), a->scale, head, width, half);
    memset(w->out, 0, sizeof(float) * rows * width);
    for (int t = 0; t < count; t += CHUNK) {
        const char *after = after_chunk(a, item, KEYS, low + t, values, half);
        find_chunk(a, item, KEYS, low + t, after, w->keys, width, &chunk, half);
        score(w, &chunk, w->p + t, rows, strips);
    }
    for (int m = 0; m < rows; m++) {
        float *p = w->p + m * LONGEST;
        int first = w->first[m] - low, last = w->last[m] - low;
        /* What stands behind the last score is that of no token. */
        for (int t = count; t % LANES; t++) p[t] = NONE;
        int masked = first > 0 || last < count || (w->softcap && count % LANES); /* a cap would raise the last */
        if (masked) w->total[m] = row_weights(p, count, first, last, w->softcap, w->peak + m, 1);
        else w->total[m] = row_weights(p, count, 0, count, w->softcap, w->peak + m, 0);
    }
    for (int t = 0; t < count; t += CHUNK) {
        const char *after = after_chunk(a, item, VALUES, low + t, then, half);
        find_chunk(a, item, VALUES, low + t, after, w->values, width, &chunk, half);
        for (int r = 0; r < rows; r += ROWS) {
            float *out = w->out + (long)r * width, *p = w->p + r * LONGEST + t;
            int some = least(rows - r, ROWS), s = 0;
            for (; s + 4 <= strips; s += 4) values_of_rows[some - 1](&chunk, out, p, width, s * LANES, !r);
            for (; s < strips; s++)
                for (int i = 0; i < some; i++)
                    row_values_1(&chunk, out + i * width, p + i * LONGEST, width, s * LANES, !r && !i);
        }
    }
    for (int m = 0; m < rows; m++)
        finish(a, item, query_of(a, item, m), w->out + (long)m * width, w->peak[m], w->total[m], half);
}

void penstock_attend_rows(const Attention *a, Scratch *w, const Item *item, const Item *next, int half) {
    if (half) few_queries(a, w, item, next, 1);
    else few_queries(a, w, item, next, 0);
}
