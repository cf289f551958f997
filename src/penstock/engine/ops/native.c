/* The CPU's kernels around attention: the small operations of a layer, fused, and products of few rows.
 *
 * Each is the C twin of a method of kernels.py, which says what it computes and names the dimensions. Elements are
 * float or bfloat16 (`half`), arithmetic is always float.
 */
#include <omp.h>
#include <stdlib.h>

#include "vectors.h"

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

INLINE vec silu_times(vec gate, vec up) { return gate / (1.0f + exponential(-gate)) * up; }

INLINE void silu_row(const void *gate_up, void *out, long n, const int half) {
    const void *up = at(gate_up, n, half);
    long i = 0;
    for (; i + LANES <= n; i += LANES)
        store_lanes(out, i, silu_times(load_lanes(gate_up, i, half), load_lanes(up, i, half)), half);
    float left[LANES] = {0}, right[LANES] = {0};
    for (long k = i; k < n; k++) {
        left[k - i] = load(gate_up, k, half);
        right[k - i] = load(up, k, half);
    }
    vec last = silu_times(load_vec(left), load_vec(right));
    for (long k = i; k < n; k++) store(out, k, last[k - i], half);
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
