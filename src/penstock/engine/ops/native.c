/* The CPU's kernels: attention over the paged pool in place, and the small operations of a layer, fused.
 *
 * Each is the C twin of a method of kernels.py, which says what it computes and names the dimensions. Elements are
 * float or bfloat16 (`half`), arithmetic is always float. Vectors are 16 floats in the compiler's own vector
 * extension, which becomes AVX-512, AVX2 or NEON as the machine has it. Nothing here needs relaxed floating point, so
 * a NaN stays one and ends only the row it came from.
 */
#include <math.h>
#include <omp.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#define INLINE static inline __attribute__((always_inline))
#define LANES 16
/* Query rows that share one pass over a block of keys and values: enough to reuse it, few enough to stay in cache. */
#define TILE_ROWS 32

typedef float vec __attribute__((vector_size(4 * LANES)));

INLINE vec load_vec(const float *p) { vec v; memcpy(&v, p, sizeof v); return v; }
INLINE void store_vec(float *p, vec v) { memcpy(p, &v, sizeof v); }

INLINE float widen(uint16_t x) { uint32_t u = (uint32_t)x << 16; float f; memcpy(&f, &u, 4); return f; }

/* Round to nearest, ties to even; a NaN stays a NaN. */
INLINE uint16_t narrow(float f) {
    uint32_t u;
    memcpy(&u, &f, 4);
    uint32_t rounded = (u + 0x7fff + ((u >> 16) & 1)) >> 16;
    return f != f ? 0x7fc0 : (uint16_t)rounded;
}

INLINE float load(const void *p, long i, const int half) {
    return half ? widen(((const uint16_t *)p)[i]) : ((const float *)p)[i];
}

INLINE void store(void *p, long i, float x, const int half) {
    if (half) ((uint16_t *)p)[i] = narrow(x);
    else ((float *)p)[i] = x;
}

INLINE const void *at(const void *p, long i, const int half) { return (const char *)p + i * (half ? 2 : 4); }

/* e^x to about 1 ulp for x in [-87, 88], clamped outside: Cody-Waite reduction, then Cephes' polynomial. */
INLINE float exponential(float x) {
    const float magic = 12582912.0f; /* 1.5 * 2^23: adding it rounds to a whole number in the low bits */
    x = x < -87.0f ? -87.0f : x;
    x = x > 88.0f ? 88.0f : x;
    float shifted = x * 1.44269504f + magic;
    float n = shifted - magic;
    float r = x - n * 0.693359375f + n * 2.12194440e-4f;
    float p = 1.9875691500e-4f;
    p = p * r + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * r * r + r + 1.0f;
    int32_t bits;
    memcpy(&bits, &shifted, 4);
    int32_t power = (int32_t)((uint32_t)(bits - 0x4b400000 + 127) << 23);
    float scale;
    memcpy(&scale, &power, 4);
    return p * scale;
}

/* tanh x to about 1e-7; a NaN stays one. */
INLINE float hyperbolic_tangent(float x) {
    float e = exponential(-2.0f * fabsf(x));
    return copysignf((1.0f - e) / (1.0f + e), x);
}

/* ---- attention ---- */

/* Sums of 16 vectors as the 16 lanes of one: pairs are added lane by lane, halving their number four times. */
typedef int32_t lanes __attribute__((vector_size(4 * LANES)));
#ifdef __clang__
#define PICK(a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else /* GCC has clang's name for it only since version 12 */
#define PICK(a, b, ...) __builtin_shuffle(a, b, (lanes){__VA_ARGS__})
#endif
#define EVEN(a, b) PICK(a, b, 0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30)
#define ODD(a, b) PICK(a, b, 1, 3, 5, 7, 9, 11, 13, 15, 17, 19, 21, 23, 25, 27, 29, 31)
#define HALVE(n) \
    _Pragma("GCC unroll 8") for (int i = 0; i < n; i++) v[i] = EVEN(v[2 * i], v[2 * i + 1]) + ODD(v[2 * i], v[2 * i + 1]);
INLINE vec sums(vec v[LANES]) {
    HALVE(8) HALVE(4) HALVE(2) HALVE(1)
    return v[0];
}

/* q . k for 16 tokens; of fewer, the last is repeated and its copies are not used. Rows are `strips` vectors long. */
INLINE vec scores(const float *q, const float *keys, const int strips, const int full, int tokens) {
    vec part[LANES];
    #pragma GCC unroll 16
    for (int t = 0; t < LANES; t++) {
        const float *key = keys + (long)(full || t < tokens ? t : tokens - 1) * strips * LANES;
        vec dot = load_vec(q) * load_vec(key);
        #pragma GCC unroll 8
        for (int s = 1; s < strips; s++) dot += load_vec(q + s * LANES) * load_vec(key + s * LANES);
        part[t] = dot;
    }
    return sums(part);
}

/* out += sum over tokens of p[t] * values[t]. */
INLINE void add_values(float *out, const float *p, const float *values, const int strips, int tokens) {
    long width = (long)strips * LANES;
    int s = 0;
    for (; s + 4 <= strips; s += 4) {
        float *o = out + s * LANES;
        const float *v = values + s * LANES;
        vec a = load_vec(o), b = load_vec(o + 16), c = load_vec(o + 32), d = load_vec(o + 48);
        for (int t = 0; t < tokens; t++, v += width) {
            float x = p[t];
            a += x * load_vec(v);
            b += x * load_vec(v + 16);
            c += x * load_vec(v + 32);
            d += x * load_vec(v + 48);
        }
        store_vec(o, a); store_vec(o + 16, b); store_vec(o + 32, c); store_vec(o + 48, d);
    }
    for (; s < strips; s++) {
        const float *v = values + s * LANES;
        vec a = load_vec(out + s * LANES);
        for (int t = 0; t < tokens; t++, v += width) a += p[t] * load_vec(v);
        store_vec(out + s * LANES, a);
    }
}

typedef struct {
    float *q, *out, *keys, *values; /* tile [rows, width]; a block [B, width] in float, where the pool's is not */
    float *peak, *total;            /* running maximum and sum of each row's softmax */
    float softcap;                  /* 0: none */
} Scratch;

/* One row against tokens [first, last) of a block: an online softmax, 16 tokens at a time. */
INLINE void attend(Scratch *w, int row, const float *keys, const float *values, const int strips, int first, int last) {
    long width = (long)strips * LANES;
    const float *q = w->q + row * width;
    float *out = w->out + row * width, peak = w->peak[row], total = w->total[row];
    for (int t = first; t < last; t += LANES) {
        int tokens = last - t < LANES ? last - t : LANES;
        float p[LANES], high = -INFINITY, sum = 0;
        store_vec(p, tokens == LANES ? scores(q, keys + t * width, strips, 1, LANES)
                                     : scores(q, keys + t * width, strips, 0, tokens));
        if (w->softcap)
            #pragma omp simd
            for (int i = 0; i < LANES; i++) p[i] = w->softcap * hyperbolic_tangent(p[i] / w->softcap);
        for (int i = tokens; i < LANES; i++) p[i] = -INFINITY;
        #pragma omp simd reduction(max : high)
        for (int i = 0; i < LANES; i++) high = p[i] > high ? p[i] : high;
        if (high > peak) {
            float shrink = exponential(peak - high);
            total *= shrink;
            for (int s = 0; s < strips; s++) store_vec(out + s * LANES, load_vec(out + s * LANES) * shrink);
            peak = high;
        }
        #pragma omp simd reduction(+ : sum)
        for (int i = 0; i < LANES; i++) {
            p[i] = exponential(p[i] - peak);
            sum += i < tokens ? p[i] : 0.0f;
        }
        total += sum;
        if (tokens == LANES) add_values(out, p, values + t * width, strips, LANES);
        else add_values(out, p, values + t * width, strips, tokens);
    }
    w->peak[row] = peak;
    w->total[row] = total;
}

/* All rows of a tile against one block: the common head widths (16, 32, 64, 128) have code of their own. `position`
 * is the first row's, counted from the block's first token. */
INLINE void attend_rows(Scratch *w, int rows, int group, const float *keys, const float *values, const int strips,
                        int position, int window, int tokens) {
    for (int m = 0; m < rows; m++) {
        int here = position + m / group, first = window && here - window + 1 > 0 ? here - window + 1 : 0;
        int last = here + 1 < tokens ? here + 1 : tokens;
        if (first < last) attend(w, m, keys, values, strips, first, last);
    }
}
typedef void attend_block(Scratch *, int, int, const float *, const float *, int, int, int, int);
#define ATTEND_BLOCK(name, fixed)                                                                                    \
    static __attribute__((noinline)) void name(Scratch *w, int rows, int group, const float *keys,                   \
                                               const float *values, int strips, int position, int window, int tokens) { \
        (void)strips;                                                                                                \
        attend_rows(w, rows, group, keys, values, fixed, position, window, tokens);                                  \
    }
ATTEND_BLOCK(attend_16, 1)
ATTEND_BLOCK(attend_32, 2)
ATTEND_BLOCK(attend_64, 4)
ATTEND_BLOCK(attend_128, 8)
ATTEND_BLOCK(attend_any, strips)

/* A block's rows as floats, padded with zeros to whole vectors. */
INLINE void unpack(float *to, const void *from, int tokens, int head, int width, const int half) {
    for (int t = 0; t < tokens; t++) {
        for (int h = 0; h < head; h++) to[(long)t * width + h] = load(from, (long)t * head + h, half);
        for (int h = head; h < width; h++) to[(long)t * width + h] = 0;
    }
}

typedef struct {
    const void *qkv, *pool; /* pool: at this layer's keys of block 0 */
    void *out;
    const int32_t *first_row, *lengths, *table_rows, *tables;
    long qkv_stride, block_stride, table_stride;
    int segments, heads, kv_heads, head, block_tokens, window; /* window 0: none */
    float scale, softcap; /* softcap 0: none */
} Attention;

/* Rows [from, to) of segment s, all query heads of one KV head: one pass over the keys and values they see. */
INLINE void attend_tile(const Attention *a, Scratch *w, int s, int kv_head, int from, int to, const int half) {
    int group = a->heads / a->kv_heads, head = a->head, strips = (head + LANES - 1) / LANES, width = strips * LANES;
    int row0 = a->first_row[s], rows = a->first_row[s + 1] - row0;
    int position = a->lengths[s] - rows + from; /* of the tile's first row */
    int low = a->window && position - a->window + 1 > 0 ? position - a->window + 1 : 0, high = position + to - from;
    const int32_t *table = a->tables + a->table_rows[s] * a->table_stride;
    long head_elements = (long)a->block_tokens * head, values_offset = head_elements * a->kv_heads;
    int tile = (to - from) * group;

    for (int m = 0; m < tile; m++) {
        long column = (long)(kv_head * group + m % group) * head;
        const void *q = at(a->qkv, (row0 + from + m / group) * a->qkv_stride + column, half);
        for (int h = 0; h < head; h++) w->q[(long)m * width + h] = load(q, h, half) * a->scale;
        for (int h = head; h < width; h++) w->q[(long)m * width + h] = 0;
        w->peak[m] = -INFINITY;
        w->total[m] = 0;
    }
    memset(w->out, 0, sizeof(float) * tile * width);
    attend_block *attend_now = strips == 1   ? attend_16
                               : strips == 2 ? attend_32
                               : strips == 4 ? attend_64
                               : strips == 8 ? attend_128
                                             : attend_any;

    for (int block = low / a->block_tokens; block <= (high - 1) / a->block_tokens; block++) {
        int token0 = block * a->block_tokens;
        int tokens = high - token0 < a->block_tokens ? high - token0 : a->block_tokens;
        const void *keys = at(a->pool, table[block] * a->block_stride + kv_head * head_elements, half);
        const void *values = at(keys, values_offset, half);
        /* The next block lies anywhere: the hardware cannot guess it. */
        if (token0 + a->block_tokens < high) {
            const char *next = at(a->pool, table[block + 1] * a->block_stride + kv_head * head_elements, half);
            long bytes = head_elements * (half ? 2 : 4), apart = values_offset * (half ? 2 : 4);
            for (long i = 0; i < bytes; i += 64) {
                __builtin_prefetch(next + i);
                __builtin_prefetch(next + apart + i);
            }
        }
        if (half || width != head) {
            unpack(w->keys, keys, tokens, head, width, half);
            unpack(w->values, values, tokens, head, width, half);
            keys = w->keys;
            values = w->values;
        }
        attend_now(w, tile, group, keys, values, strips, position - token0, a->window, tokens);
    }

    for (int m = 0; m < tile; m++) {
        long row = row0 + from + m / group, column = (long)(kv_head * group + m % group) * head;
        float share = 1.0f / w->total[m];
        for (int h = 0; h < head; h++)
            store(a->out, row * a->heads * head + column + h, w->out[(long)m * width + h] * share, half);
    }
}

static int scratch_alloc(Scratch *w, int tile, int width, int block_tokens) {
    size_t rows = (size_t)tile * width, block = (size_t)block_tokens * width;
    w->q = malloc(sizeof(float) * (2 * rows + 2 * block + 2 * (size_t)tile));
    if (!w->q) return 0;
    w->out = w->q + rows;
    w->keys = w->out + rows;
    w->values = w->keys + block;
    w->peak = w->values + block;
    w->total = w->peak + tile;
    return 1;
}

/* Returns 0, or 1 when memory ran out. */
int penstock_attention(
    const void *qkv, const void *pool, void *out, const int32_t *first_row, const int32_t *lengths,
    const int32_t *table_rows, const int32_t *tables, long qkv_stride, long block_stride, long table_stride,
    long segments, long longest_rows, long heads, long kv_heads, long head, long block_tokens, long window,
    double scale, double softcap, long half, long threads) {
    Attention a = {qkv, pool, out, first_row, lengths, table_rows, tables, qkv_stride, block_stride, table_stride,
                   (int)segments, (int)heads, (int)kv_heads, (int)head, (int)block_tokens, (int)window, (float)scale,
                   (float)softcap};
    int group = a.heads / a.kv_heads, rows = TILE_ROWS / group > 0 ? TILE_ROWS / group : 1;
    int tiles = (int)((longest_rows + rows - 1) / rows), width = (a.head + LANES - 1) / LANES * LANES;
    long items = segments * kv_heads * tiles, tokens = 0;
    for (int s = 0; s < a.segments; s++) tokens += (long)lengths[s] * (first_row[s + 1] - first_row[s]);
    /* Waking a team costs about as much as this many multiply-adds. */
    if (tokens * heads * head < 1 << 17) threads = 1;
    int failed = 0;
    #pragma omp parallel num_threads((int)threads) reduction(| : failed) if (threads > 1)
    {
        Scratch w = {.softcap = a.softcap};
        int ok = scratch_alloc(&w, rows * group, width, a.block_tokens);
        failed |= !ok;
        #pragma omp for schedule(dynamic, 1)
        for (long item = 0; item < items; item++) {
            /* Late tiles see most tokens: they go first, so that no thread is left with a long one at the end. */
            int tile = tiles - 1 - (int)(item / (segments * kv_heads));
            int s = (int)(item / kv_heads % segments), kv_head = (int)(item % kv_heads);
            int count = first_row[s + 1] - first_row[s], from = tile * rows;
            if (!ok || from >= count) continue;
            int to = from + rows < count ? from + rows : count;
            if (half) attend_tile(&a, &w, s, kv_head, from, to, 1);
            else attend_tile(&a, &w, s, kv_head, from, to, 0);
        }
        if (ok) free(w.q);
    }
    return failed;
}

/* ---- what is around it ---- */

INLINE float rms(const void *x, long n, float eps, const int half) {
    float sum = 0;
    #pragma omp simd reduction(+ : sum)
    for (long i = 0; i < n; i++) {
        float v = load(x, i, half);
        sum += v * v;
    }
    return 1.0f / sqrtf(sum / (float)n + eps);
}

INLINE void norm_row(void *x, const void *delta, const void *weight, void *out, long n, float eps, const int half) {
    if (delta) {
        #pragma omp simd
        for (long i = 0; i < n; i++) store(x, i, load(x, i, half) + load(delta, i, half), half);
    }
    float r = rms(x, n, eps, half);
    #pragma omp simd
    for (long i = 0; i < n; i++) store(out, i, load(weight, i, half) * (load(x, i, half) * r), half);
}

void penstock_add_rms_norm(
    void *x, const void *delta, const void *weight, void *out, long rows, long n, double eps, long half, long threads) {
    if (rows * n < 1 << 16) threads = 1;
    #pragma omp parallel for num_threads((int)threads) if (threads > 1)
    for (long t = 0; t < rows; t++) {
        void *row = (void *)at(x, t * n, half), *to = (void *)at(out, t * n, half);
        const void *add = delta ? at(delta, t * n, half) : NULL;
        if (half) norm_row(row, add, weight, to, n, (float)eps, 1);
        else norm_row(row, add, weight, to, n, (float)eps, 0);
    }
}

INLINE void silu_row(const void *gate_up, void *out, long n, const int half) {
    const void *up = at(gate_up, n, half);
    #pragma omp simd
    for (long i = 0; i < n; i++) {
        float g = load(gate_up, i, half);
        store(out, i, g / (1.0f + exponential(-g)) * load(up, i, half), half);
    }
}

void penstock_silu_mul(const void *gate_up, void *out, long rows, long n, long half, long threads) {
    if (rows * n < 1 << 15) threads = 1;
    #pragma omp parallel for num_threads((int)threads) if (threads > 1)
    for (long t = 0; t < rows; t++) {
        if (half) silu_row(at(gate_up, 2 * t * n, 1), (void *)at(out, t * n, 1), n, 1);
        else silu_row(at(gate_up, 2 * t * n, 0), (void *)at(out, t * n, 0), n, 0);
    }
}

/* One head: norm (weight NULL: none), rotation of its first `turned` elements, from `from` to `to`, which may be the
 * same. */
INLINE void turn(const void *from, void *to, const float *cosine, const float *sine, const void *weight, float eps,
                 long head, long turned, const int half) {
    float r = weight ? rms(from, head, eps, half) : 1.0f;
    long middle = turned / 2;
    for (long h = turned; h < head; h++)
        store(to, h, load(from, h, half) * r * (weight ? load(weight, h, half) : 1.0f), half);
    #pragma omp simd
    for (long h = 0; h < middle; h++) {
        float left = load(from, h, half) * r, right = load(from, h + middle, half) * r;
        if (weight) {
            left *= load(weight, h, half);
            right *= load(weight, h + middle, half);
        }
        store(to, h, left * cosine[h] - right * sine[h], half);
        store(to, h + middle, right * cosine[h] + left * sine[h], half);
    }
}

INLINE void rotate_row(void *row, void *keys, void *values, const float *cosine, const float *sine,
                       const void *query_weight, const void *key_weight, float eps, long heads, long kv_heads,
                       long head, long turned, long head_stride, const int half) {
    if (cosine || query_weight)
        for (long n = 0; n < heads; n++) {
            void *q = (void *)at(row, n * head, half);
            turn(q, q, cosine, sine, query_weight, eps, head, turned, half);
        }
    for (long k = 0; k < kv_heads; k++) {
        turn(at(row, (heads + k) * head, half), (void *)at(keys, k * head_stride, half), cosine, sine, key_weight, eps,
             head, turned, half);
        memcpy((void *)at(values, k * head_stride, half), at(row, (heads + kv_heads + k) * head, half),
               head * (half ? 2 : 4));
    }
}

void penstock_rotate_and_store(
    void *qkv, void *pool, const float *cosine, const float *sine, const void *query_weight, const void *key_weight,
    const int64_t *kv_index, long rows, long heads, long kv_heads, long head, long turned, long block_tokens,
    long block_stride, double eps, long half, long threads) {
    long width = (heads + 2 * kv_heads) * head, head_stride = block_tokens * head;
    if (rows * width < 1 << 16) threads = 1;
    #pragma omp parallel for num_threads((int)threads) if (threads > 1)
    for (long t = 0; t < rows; t++) {
        long block = kv_index[t] / block_tokens, offset = kv_index[t] % block_tokens;
        void *row = (void *)at(qkv, t * width, half);
        void *keys = (void *)at(pool, block * block_stride + offset * head, half);
        void *values = (void *)at(keys, kv_heads * head_stride, half);
        const float *c = cosine ? cosine + t * (turned / 2) : NULL, *s = sine ? sine + t * (turned / 2) : NULL;
        if (half)
            rotate_row(row, keys, values, c, s, query_weight, key_weight, (float)eps, heads, kv_heads, head,
                       turned, head_stride, 1);
        else
            rotate_row(row, keys, values, c, s, query_weight, key_weight, (float)eps, heads, kv_heads, head,
                       turned, head_stride, 0);
    }
}

/* ---- few rows times a matrix ---- */

typedef uint16_t halves __attribute__((vector_size(2 * LANES)));
typedef uint32_t words __attribute__((vector_size(4 * LANES)));

INLINE vec load_lanes(const void *p, long i, const int half) {
    if (!half) return load_vec((const float *)p + i);
    halves h;
    memcpy(&h, (const uint16_t *)p + i, sizeof h);
    words w = __builtin_convertvector(h, words) << 16;
    vec v;
    memcpy(&v, &w, sizeof v);
    return v;
}

typedef struct {
    const float *x; /* [rows, width], padded with zeros to whole vectors */
    const void *weight, *bias;
    void *out;
    long rows, inputs, outputs, width;
} Linear;

/* `count` (a constant) rows from `row` times 16 rows of the weight, which is read in the order it lies in memory. */
INLINE void linear_block(const Linear *l, long row, const int count, long output, const int half) {
    vec part[4][LANES];
    long left = l->outputs - output, whole = l->inputs / LANES, rest = l->inputs % LANES;
    const float *x = l->x + row * l->width;
    for (int t = 0; t < LANES; t++) {
        long at_row = (output + (t < left ? t : left - 1)) * l->inputs;
        vec sum[4] = {{0}, {0}, {0}, {0}};
        for (long s = 0; s < whole; s++) {
            vec w = load_lanes(l->weight, at_row + s * LANES, half);
            for (int r = 0; r < count; r++) sum[r] += w * load_vec(x + r * l->width + s * LANES);
        }
        if (rest) {
            float last[LANES] = {0};
            for (long i = 0; i < rest; i++) last[i] = load(l->weight, at_row + whole * LANES + i, half);
            vec w = load_vec(last);
            for (int r = 0; r < count; r++) sum[r] += w * load_vec(x + r * l->width + whole * LANES);
        }
        for (int r = 0; r < count; r++) part[r][t] = sum[r];
    }
    for (int r = 0; r < count; r++) {
        float y[LANES];
        store_vec(y, sums(part[r]));
        for (int t = 0; t < LANES && t < left; t++) {
            float bias = l->bias ? load(l->bias, output + t, half) : 0.0f;
            store(l->out, (row + r) * l->outputs + output + t, y[t] + bias, half);
        }
    }
}

INLINE void linear_rows(const Linear *l, long output, const int half) {
    long row = 0;
    for (; row + 4 <= l->rows; row += 4) linear_block(l, row, 4, output, half);
    for (; row + 2 <= l->rows; row += 2) linear_block(l, row, 2, output, half);
    for (; row < l->rows; row++) linear_block(l, row, 1, output, half);
}

/* Returns 0, or 1 when memory ran out. */
int penstock_linear(const void *x, const void *weight, const void *bias, void *out, long rows, long inputs,
                    long outputs, long half, long threads) {
    Linear l = {x, weight, bias, out, rows, inputs, outputs, (inputs + LANES - 1) / LANES * LANES};
    float *copy = NULL;
    if (half || l.width != inputs) {
        copy = malloc(sizeof(float) * rows * l.width);
        if (!copy) return 1;
        for (long r = 0; r < rows; r++) {
            if (half) for (long i = 0; i < inputs; i++) copy[r * l.width + i] = load(x, r * inputs + i, 1);
            else memcpy(copy + r * l.width, (const float *)x + r * inputs, sizeof(float) * inputs);
            for (long i = inputs; i < l.width; i++) copy[r * l.width + i] = 0;
        }
        l.x = copy;
    }
    if (inputs * outputs < 1 << 17) threads = 1;
    #pragma omp parallel for num_threads((int)threads) if (threads > 1) schedule(static)
    for (long output = 0; output < outputs; output += LANES) {
        if (half) linear_rows(&l, output, 1);
        else linear_rows(&l, output, 0);
    }
    free(copy);
    return 0;
}

/* Which OpenMP runtime these kernels ended up with: the threads it would use. */
long penstock_max_threads(void) { return omp_get_max_threads(); }
