/* What the files of attention share: the arguments, an item of work, the chunk of keys and values it is at. */
#ifndef PENSTOCK_ATTENTION_H
#define PENSTOCK_ATTENTION_H
#include "vectors.h"

#define STRANDS 3             /* vectors of queries in a tile */
#define TILE (STRANDS * LANES)
#define FEW 10                /* up to so many queries are rows: measured */
#define CHUNK 64              /* keys whose scores a tile holds at a time */
#define PART 512              /* tokens of a part of a long context, about */
#define LONGEST (PART + PART / 2 + CHUNK + LANES) /* scores of a row have room for any part's tokens and a vector */
#define NONE -3.0e38f         /* largest score of no key; finite, so that differences are */

typedef struct {
    const void *qkv, *pool; /* pool: at this layer's keys of block 0 */
    void *out;
    const int32_t *first_row, *lengths, *table_rows, *tables;
    const int32_t *group_first, *members, *shared; /* [groups + 1], segments, [groups] leading blocks in common */
    long qkv_stride, block_stride, table_stride;
    int segments, groups, heads, kv_heads, head, block_tokens, window; /* window 0: none */
    float scale, softcap; /* softcap 0: none */
    float *parts;         /* [part][K][queries of the segment][head + 2]: largest score, sum, output */
    long *parts_at;       /* [segments] where a segment's begin; -1: it has none */
    int32_t *parts_of;    /* [segments] how many */
} Attention;

/* Queries [from, to) of one KV head, of a segment or of a group's members, against tokens [low, high). A query is
 * numbered by row, then by head in the group of the KV head. */
typedef struct {
    int segment, group; /* group -1: a segment alone; else `segment` is its first member */
    int kv_head, from, to, low, high;
    int part; /* -1: all there is */
} Item;

typedef struct {
    float *q, *out;       /* rows: [queries, width]; tile: [width, TILE] */
    float *p, *rows;      /* scores: tile [CHUNK, TILE], rows [FEW, LONGEST]; [LANES, width] */
    float *keys, *values; /* some of the pool's in float */
    float *peak, *total;  /* [TILE] running maximum and sum of each query's softmax */
    int32_t *first, *last; /* [TILE] tokens [first, last) are what a query sees */
    float softcap;
} Scratch;

INLINE int least(int a, int b) { return a < b ? a : b; }
INLINE int most(int a, int b) { return a > b ? a : b; }
INLINE int rows_of(const Attention *a, int segment) { return a->first_row[segment + 1] - a->first_row[segment]; }
INLINE int width_of(const Attention *a) { return (a->head + LANES - 1) / LANES * LANES; }

/* Where query m of an item is from and goes to. */
typedef struct { int segment, number; long column; } Query;
INLINE Query query_of(const Attention *a, const Item *item, int m) {
    int group = a->heads / a->kv_heads, number = item->from + m;
    Query q = {item->segment, number, 0};
    if (item->group >= 0) q = (Query){a->members[a->group_first[item->group] + number / group], number % group, 0};
    q.column = (a->first_row[q.segment] + q.number / group) * a->qkv_stride +
               (long)(item->kv_head * group + q.number % group) * a->head;
    return q;
}

/* What each query of an item sees, and that it has seen nothing; up to a multiple of LANES queries. */
INLINE void begin(const Attention *a, Scratch *w, const Item *item) {
    int count = item->to - item->from, group = a->heads / a->kv_heads;
    int position = a->lengths[item->segment] - rows_of(a, item->segment);
    for (int m = 0; m < (count + LANES - 1) / LANES * LANES; m++) {
        int here = position + (item->from + m) / group;
        w->first[m] = item->low;
        w->last[m] = item->high;
        w->peak[m] = NONE;
        w->total[m] = 0;
        if (item->group >= 0 || m >= count) continue;
        w->last[m] = least(here + 1, item->high);
        if (a->window) w->first[m] = most(item->low, here - a->window + 1);
    }
}

/* Elements [0, head) as floats times `scale`, filled up with zeros to `width`. */
INLINE void widen_row(float *to, const void *from, float scale, int head, int width, const int half) {
    int h = 0;
    for (; h + LANES <= head; h += LANES) store_vec(to + h, load_lanes(from, h, half) * scale);
    for (; h < head; h++) to[h] = load(from, h, half) * scale;
    for (; h < width; h++) to[h] = 0;
}

/* What a query has come to: its share of the output, or a part for `merge`. */
INLINE void finish(const Attention *a, const Item *item, Query query, const float *out, float peak, float total,
                   const int half) {
    int group = a->heads / a->kv_heads, head = a->head, h = 0;
    if (item->part >= 0) {
        long at_part = (long)item->part * a->kv_heads + item->kv_head;
        float *to = a->parts + a->parts_at[query.segment] +
                    (at_part * rows_of(a, query.segment) * group + query.number) * (head + 2);
        to[0] = peak;
        to[1] = total;
        memcpy(to + 2, out, sizeof(float) * head);
        return;
    }
    long row = a->first_row[query.segment] + query.number / group;
    void *to = (void *)at(a->out, (row * a->heads + item->kv_head * group + query.number % group) * head, half);
    for (; h + LANES <= head; h += LANES) store_lanes(to, h, load_vec(out + h) / total, half);
    for (; h < head; h++) store(to, h, out[h] / total, half);
}

/* The keys, or the values, of consecutive tokens: of each block those that are of it, and as many bytes that are read
 * from memory after them. */
typedef struct {
    const float *rows[CHUNK];
    const char *ahead[CHUNK];
    int token, tokens, skip, piece; /* `skip` tokens of the first block are not of it; blocks hold `piece` tokens */
} Chunk;
INLINE int piece_of(const Chunk *c, int block, int done) {
    return least(c->tokens - done, c->piece - (block ? 0 : c->skip));
}

enum { KEYS, VALUES };

/* Where a token's key or value is in the pool, for an item's KV head. */
INLINE const char *row_at(const Attention *a, const Item *item, int side, int token, const int half) {
    int B = a->block_tokens, block = token / B;
    const int32_t *table = a->tables + a->table_rows[item->segment] * a->table_stride;
    long head = ((long)side * a->kv_heads + item->kv_head) * B + token % B;
    return at(a->pool, table[block] * a->block_stride + head * a->head, half);
}

/* Keys or values of at most CHUNK tokens of an item from `token` on; `then` is what is read after them. They are used
 * in place, or in float in `wide`, where the pool's are not, or not whole vectors and they must be. */
INLINE void find_chunk(const Attention *a, const Item *item, int side, int token, const char *then, float *wide,
                       int width, Chunk *c, const int half) {
    int head = a->head, B = a->block_tokens, pieces = 0, here;
    long row_bytes = (long)head * (half ? 2 : 4), block_bytes = a->block_stride * (half ? 2 : 4);
    const int32_t *table = a->tables + a->table_rows[item->segment] * a->table_stride + token / B;
    const char *base = row_at(a, item, side, token, half), *row = base;
    base -= table[0] * block_bytes;
    c->token = token;
    c->tokens = least(item->high - token, CHUNK);
    c->skip = token % B;
    c->piece = B;
    base -= c->skip * row_bytes;
    for (int done = 0; done < c->tokens; pieces++, done += here) {
        here = piece_of(c, pieces, done);
        const char *after = done + here < c->tokens ? base + table[pieces + 1] * block_bytes : then;
        c->rows[pieces] = (const float *)row;
        c->ahead[pieces] = after;
        if (half || width != head) {
            c->rows[pieces] = wide + (long)done * width;
            for (int t = 0; t < here; t++) {
                for (long i = 0; i < row_bytes; i += 64) __builtin_prefetch(after + t * row_bytes + i);
                widen_row(wide + (long)(done + t) * width, row + t * row_bytes, 1, head, width, half);
            }
            c->ahead[pieces] = (const char *)wide;
        }
        row = after;
    }
}

/* What comes after a chunk: the same of the item's next tokens, then `then`. */
INLINE const char *after_chunk(const Attention *a, const Item *item, int side, int token, const char *then,
                               const int half) {
    return token + CHUNK < item->high ? row_at(a, item, side, token + CHUNK, half) : then;
}

INLINE void fetch(const char *from, long bytes) {
    for (long i = 0; i < bytes; i += 64) __builtin_prefetch(from + i);
}

/* Queries as rows, at most FEW, before those of `next` if there is one; queries side by side, at most TILE. */
void penstock_attend_rows(const Attention *a, Scratch *w, const Item *item, const Item *next, int half);
void penstock_attend_tile(const Attention *a, Scratch *w, const Item *item, const Item *next, int half);
#endif
