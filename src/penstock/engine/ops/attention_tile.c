/* Attention of many queries: they lie side by side in the lanes of up to three vectors. */
#include "attention.h"

/* Keys, or columns of values, whose sums registers hold for all strands. */
#ifdef __AVX512F__
#define AT_ONCE 8
#else
#define AT_ONCE 4
#endif

/* Scores of `count` keys, `head` apart: p[key] = sum over h of keys[key][h] * q[h]. */
INLINE void tile_scores(float *p, const float *keys, const float *q, const int head, const int count,
                        const int strands) {
    vec sum[AT_ONCE][STRANDS];
    #pragma GCC unroll 8
    for (int i = 0; i < count; i++)
        #pragma GCC unroll 3
        for (int s = 0; s < strands; s++) sum[i][s] = (vec){0};
    for (int h = 0; h < head; h++) {
        vec at_h[STRANDS];
        #pragma GCC unroll 3
        for (int s = 0; s < strands; s++) at_h[s] = load_vec(q + h * TILE + s * LANES);
        #pragma GCC unroll 8
        for (int i = 0; i < count; i++) {
            float x = keys[(long)i * head + h];
            #pragma GCC unroll 3
            for (int s = 0; s < strands; s++) sum[i][s] += x * at_h[s];
        }
    }
    #pragma GCC unroll 8
    for (int i = 0; i < count; i++)
        #pragma GCC unroll 3
        for (int s = 0; s < strands; s++) store_vec(p + i * TILE + s * LANES, sum[i][s]);
}

/* out[h] = out[h] * shrink + sum over keys of values[key][h] * p[key], for `count` columns from h on. */
INLINE void tile_values(const Chunk *c, float *out, const float *p, const vec *shrink, int h, const int head,
                        const int count, const int strands) {
    vec sum[AT_ONCE][STRANDS];
    #pragma GCC unroll 8
    for (int i = 0; i < count; i++)
        #pragma GCC unroll 3
        for (int s = 0; s < strands; s++) sum[i][s] = load_vec(out + (h + i) * TILE + s * LANES) * shrink[s];
    for (int block = 0, done = 0; done < c->tokens; block++) {
        int here = piece_of(c, block, done);
        const float *v = c->rows[block] + h;
        for (int t = 0; t < here; t++, v += head, p += TILE) {
            vec at_t[STRANDS];
            #pragma GCC unroll 3
            for (int s = 0; s < strands; s++) at_t[s] = load_vec(p + s * LANES);
            #pragma GCC unroll 8
            for (int i = 0; i < count; i++) {
                float x = v[i];
                #pragma GCC unroll 3
                for (int s = 0; s < strands; s++) sum[i][s] += x * at_t[s];
            }
        }
        done += here;
    }
    #pragma GCC unroll 8
    for (int i = 0; i < count; i++)
        #pragma GCC unroll 3
        for (int s = 0; s < strands; s++) store_vec(out + (h + i) * TILE + s * LANES, sum[i][s]);
}

/* The tokens of a chunk that every query of a tile sees: [from, to). */
typedef struct { int from, to; } Seen;

/* The largest of `high` and the scores of tokens [from, to), where a query sees them. */
INLINE vec tile_peak(const float *p, vec high, int from, int to) {
    for (int t = from; t < to; t++) high = larger(load_vec(p + t * TILE), high);
    return high;
}
INLINE vec tile_peak_seen(const float *p, vec high, int from, int to, lanes first, lanes last) {
    for (int t = from; t < to; t++) {
        lanes seen = (first <= t) & (last > t);
        high = larger(choose(seen, load_vec(p + t * TILE), all(NONE)), high);
    }
    return high;
}

/* Scores of tokens [from, to) to weights, which are added to `sum`. */
INLINE vec tile_weights(float *p, vec high, vec sum, int from, int to) {
    for (int t = from; t < to; t++) {
        vec weight = exponential(load_vec(p + t * TILE) - high);
        sum += weight;
        store_vec(p + t * TILE, weight);
    }
    return sum;
}
INLINE vec tile_weights_seen(float *p, vec high, vec sum, int from, int to, lanes first, lanes last) {
    for (int t = from; t < to; t++) {
        lanes seen = (first <= t) & (last > t);
        vec weight = (vec)((lanes)exponential(load_vec(p + t * TILE) - high) & seen);
        sum += weight;
        store_vec(p + t * TILE, weight);
    }
    return sum;
}

/* From the scores of a chunk to weights; `shrink` is what the output so far is to be multiplied by. */
INLINE void tile_softmax(Scratch *w, const Chunk *c, Seen seen, vec *shrink, const int strands) {
    #pragma GCC unroll 3
    for (int s = 0; s < strands; s++) {
        float *p = w->p + s * LANES;
        vec peak = load_vec(w->peak + s * LANES), high = peak, sum = {0};
        lanes first, last;
        memcpy(&first, w->first + s * LANES, sizeof first);
        memcpy(&last, w->last + s * LANES, sizeof last);
        first -= c->token;
        last -= c->token;
        if (w->softcap)
            for (int t = 0; t < c->tokens; t++)
                store_vec(p + t * TILE, w->softcap * hyperbolic_tangent(load_vec(p + t * TILE) / w->softcap));
        high = tile_peak_seen(p, high, 0, seen.from, first, last);
        high = tile_peak(p, high, seen.from, seen.to);
        high = tile_peak_seen(p, high, seen.to, c->tokens, first, last);
        sum = tile_weights_seen(p, high, sum, 0, seen.from, first, last);
        sum = tile_weights(p, high, sum, seen.from, seen.to);
        sum = tile_weights_seen(p, high, sum, seen.to, c->tokens, first, last);
        shrink[s] = exponential(peak - high);
        store_vec(w->peak + s * LANES, high);
        store_vec(w->total + s * LANES, load_vec(w->total + s * LANES) * shrink[s] + sum);
    }
}

/* A tile against a chunk. */
INLINE void any_tile_chunk(Scratch *w, const Chunk *c, const Chunk *values, Seen seen, const int head,
                           const int strands) {
    vec shrink[STRANDS];
    for (int block = 0, done = 0; done < c->tokens; block++) {
        int here = piece_of(c, block, done), i = 0;
        const float *keys = c->rows[block];
        for (; i + AT_ONCE <= here; i += AT_ONCE) {
            fetch(c->ahead[block] + (long)i * head * 4, AT_ONCE * head * 4);
            tile_scores(w->p + (done + i) * TILE, keys + i * head, w->q, head, AT_ONCE, strands);
        }
        for (; i < here; i++) tile_scores(w->p + (done + i) * TILE, keys + i * head, w->q, head, 1, strands);
        done += here;
    }
    tile_softmax(w, c, seen, shrink, strands);
    int h = 0;
    for (; h + AT_ONCE <= head; h += AT_ONCE) {
        for (int block = 0, done = 0; done < c->tokens; block++) {
            int here = piece_of(c, block, done);
            fetch(values->ahead[block] + (long)here * h * 4, here * AT_ONCE * 4);
            done += here;
        }
        tile_values(values, w->out, w->p, shrink, h, head, AT_ONCE, strands);
    }
    for (; h < head; h++) tile_values(values, w->out, w->p, shrink, h, head, 1, strands);
}
/* The common head widths have code of their own. */
typedef void tile_chunk(Scratch *, const Chunk *, const Chunk *, Seen, int);
#define TILE_CHUNK(name, fixed, strands)                                                                             \
    static __attribute__((noinline)) void name(Scratch *w, const Chunk *keys, const Chunk *values, Seen seen,        \
                                               int head) {                                                           \
        (void)head;                                                                                                  \
        any_tile_chunk(w, keys, values, seen, fixed, strands);                                                       \
    }
#define TILE_CHUNKS(name, fixed)  \
    TILE_CHUNK(name##_1, fixed, 1) \
    TILE_CHUNK(name##_2, fixed, 2) \
    TILE_CHUNK(name##_3, fixed, 3)
TILE_CHUNKS(tile_chunk_any, head)
#define TILES(name) {name##_1, name##_2, name##_3}
#ifdef __AVX512F__
TILE_CHUNKS(tile_chunk_64, 64)
TILE_CHUNKS(tile_chunk_128, 128)
static tile_chunk *const tiles_of[3][STRANDS] = {TILES(tile_chunk_64), TILES(tile_chunk_128), TILES(tile_chunk_any)};
#else /* where registers are too few for it to matter, and compiling it takes long */
static tile_chunk *const tiles_of[3][STRANDS] = {TILES(tile_chunk_any), TILES(tile_chunk_any), TILES(tile_chunk_any)};
#endif

INLINE void many_queries(const Attention *a, Scratch *w, const Item *item, const Item *next, const int half) {
    int head = a->head, width = width_of(a);
    int count = item->to - item->from, strands = (count + LANES - 1) / LANES;
    int all_from = item->low, all_to = item->high; /* what every query sees of [low, high) */
    for (int m = 0; m < count; m++) {
        all_from = most(all_from, w->first[m]);
        all_to = least(all_to, w->last[m]);
    }
    for (int s = 0; s < strands; s++) {
        for (int m = 0; m < LANES; m++) {
            float *row = w->rows + (long)m * width;
            if (s * LANES + m < count)
                widen_row(row, at(a->qkv, query_of(a, item, s * LANES + m).column, half), a->scale, head, width, half);
            else memset(row, 0, sizeof(float) * width);
        }
        for (int h = 0; h < width; h += LANES) transpose(w->q + h * TILE + s * LANES, TILE, w->rows + h, width);
    }
    const char *then = next ? row_at(a, next, KEYS, next->low, half) : (const char *)w->p;
    Chunk keys, values;
    memset(w->out, 0, sizeof(float) * width * TILE);
    tile_chunk *attend = tiles_of[head == 64 ? 0 : head == 128 ? 1 : 2][strands - 1];
    for (int token = item->low; token < item->high; token += CHUNK) {
        const char *after = after_chunk(a, item, KEYS, token, then, half);
        find_chunk(a, item, KEYS, token, row_at(a, item, VALUES, token, half), w->keys, head, &keys, half);
        find_chunk(a, item, VALUES, token, after, w->values, head, &values, half);
        int from = least(most(all_from - token, 0), keys.tokens), to = least(most(all_to - token, from), keys.tokens);
        attend(w, &keys, &values, (Seen){from, to}, head);
    }
    for (int s = 0; s < strands; s++) {
        for (int h = 0; h < width; h += LANES) transpose(w->rows + h, width, w->out + h * TILE + s * LANES, TILE);
        for (int m = s * LANES; m < count && m < (s + 1) * LANES; m++)
            finish(a, item, query_of(a, item, m), w->rows + (long)(m % LANES) * width, w->peak[m], w->total[m], half);
    }
}

void penstock_attend_tile(const Attention *a, Scratch *w, const Item *item, const Item *next, int half) {
    if (half) many_queries(a, w, item, next, 1);
    else many_queries(a, w, item, next, 0);
}
