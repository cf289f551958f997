/* Attention of many queries: they lie side by side in the lanes of up to three vectors. */
#include "attention.h"

/* Scores of `count` keys, `head` apart: p[key] = sum over h of keys[key][h] * q[h]. */
INLINE void tile_scores(float *p, const float *keys, const float *q, int head, const int count, const int strands) {
    vec sum[8][STRANDS];
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

/* out[h] += sum over keys of values[key][h] * p[key], for `count` columns from h on. */
INLINE void tile_values(const Chunk *c, float *out, const float *p, int h, int head, const int count,
                        const int strands) {
    vec sum[8][STRANDS];
    #pragma GCC unroll 8
    for (int i = 0; i < count; i++)
        #pragma GCC unroll 3
        for (int s = 0; s < strands; s++) sum[i][s] = load_vec(out + (h + i) * TILE + s * LANES);
    for (int block = 0, done = 0; done < c->tokens; block++) {
        int here = piece_of(c, block, done);
        const float *v = c->values[block] + h;
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

/* From the scores of keys token0 on to their weights; output so far shrinks where a larger score is found. */
INLINE void tile_softmax(Scratch *w, int token0, int keys, int head, int masked, const int strands) {
    #pragma GCC unroll 3
    for (int s = 0; s < strands; s++) {
        float *p = w->p + s * LANES;
        vec peak = load_vec(w->peak + s * LANES), high = peak, sum = {0};
        lanes first, last;
        memcpy(&first, w->first + s * LANES, sizeof first);
        memcpy(&last, w->last + s * LANES, sizeof last);
        if (w->softcap)
            for (int t = 0; t < keys; t++)
                store_vec(p + t * TILE, w->softcap * hyperbolic_tangent(load_vec(p + t * TILE) / w->softcap));
        if (masked) {
            for (int t = 0; t < keys; t++) {
                lanes seen = (first <= token0 + t) & (last > token0 + t);
                high = larger(choose(seen, load_vec(p + t * TILE), all(NONE)), high);
            }
            for (int t = 0; t < keys; t++) {
                lanes seen = (first <= token0 + t) & (last > token0 + t);
                vec weight = (vec)((lanes)exponential(load_vec(p + t * TILE) - high) & seen);
                sum += weight;
                store_vec(p + t * TILE, weight);
            }
        } else {
            for (int t = 0; t < keys; t++) high = larger(load_vec(p + t * TILE), high);
            for (int t = 0; t < keys; t++) {
                vec weight = exponential(load_vec(p + t * TILE) - high);
                sum += weight;
                store_vec(p + t * TILE, weight);
            }
        }
        vec shrink = exponential(peak - high);
        store_vec(w->peak + s * LANES, high);
        store_vec(w->total + s * LANES, load_vec(w->total + s * LANES) * shrink + sum);
        for (int h = 0; h < head; h++) {
            float *out = w->out + h * TILE + s * LANES;
            store_vec(out, load_vec(out) * shrink);
        }
    }
}

/* A tile against a chunk. */
INLINE void any_tile_chunk(Scratch *w, const Chunk *c, int head, int masked, const int strands) {
    for (int block = 0, done = 0; done < c->tokens; block++) {
        int here = piece_of(c, block, done), i = 0;
        const float *keys = c->keys[block];
        for (; i + 8 <= here; i += 8) tile_scores(w->p + (done + i) * TILE, keys + i * head, w->q, head, 8, strands);
        for (; i < here; i++) tile_scores(w->p + (done + i) * TILE, keys + i * head, w->q, head, 1, strands);
        done += here;
    }
    tile_softmax(w, c->token, c->tokens, head, masked, strands);
    int h = 0;
    for (; h + 8 <= head; h += 8) tile_values(c, w->out, w->p, h, head, 8, strands);
    for (; h < head; h++) tile_values(c, w->out, w->p, h, head, 1, strands);
}
typedef void tile_chunk(Scratch *, const Chunk *, int, int);
#define TILE_CHUNK(name, strands)                                                                                    \
    static __attribute__((noinline)) void name(Scratch *w, const Chunk *c, int head, int masked) {                   \
        any_tile_chunk(w, c, head, masked, strands);                                                                 \
    }
TILE_CHUNK(tile_chunk_1, 1)
TILE_CHUNK(tile_chunk_2, 2)
TILE_CHUNK(tile_chunk_3, 3)

INLINE void many_queries(const Attention *a, Scratch *w, const Item *item, const int half) {
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
    memset(w->out, 0, sizeof(float) * width * TILE);
    tile_chunk *attend = strands == 1 ? tile_chunk_1 : strands == 2 ? tile_chunk_2 : tile_chunk_3;
    for (int token = item->low; token < item->high; token += CHUNK) {
        Chunk chunk;
        find_chunk(a, w, item, token, head, &chunk, half);
        attend(w, &chunk, head, token < all_from || token + chunk.tokens > all_to);
    }
    for (int s = 0; s < strands; s++) {
        for (int h = 0; h < width; h += LANES) transpose(w->rows + h, width, w->out + h * TILE + s * LANES, TILE);
        for (int m = s * LANES; m < count && m < (s + 1) * LANES; m++)
            finish(a, item, query_of(a, item, m), w->rows + (long)(m % LANES) * width, w->peak[m], w->total[m], half);
    }
}

void penstock_attend_tile(const Attention *a, Scratch *w, const Item *item, int half) {
    if (half) many_queries(a, w, item, 1);
    else many_queries(a, w, item, 0);
}
