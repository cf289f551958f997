/* The CPU's kernels around attention: the small operations of a layer, fused, and products of few rows.
 *
 * Each is the C twin of a method of kernels.py, which says what it computes and names the dimensions. Elements are
 * float or bfloat16 (`half`), arithmetic is always float.
 */
#include "team.h"
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

/* The stretch of `count` items that is this thread's. */
#define MINE(i, count) \
    for (long i = (count) * team->me / team->threads, end_ = (count) * (team->me + 1) / team->threads; i < end_; i++)

void penstock_norm_rows(Team *team, void *x, const void *delta, const void *weight, void *out, long rows, long n,
                        double eps, long half) {
    MINE(t, rows) {
        void *row = (void *)at(x, t * n, half), *to = (void *)at(out, t * n, half);
        const void *add = delta ? at(delta, t * n, half) : NULL;
        if (half) norm_row(row, add, weight, to, n, (float)eps, 1);
        else norm_row(row, add, weight, to, n, (float)eps, 0);
    }
    penstock_barrier(team);
}

/* One of these operations as a call of its own; below `worth` elements one thread is faster than a team. */
#define ALONE(elements, worth, call)                                  \
    if ((elements) < (worth)) threads = 1;                            \
    _Pragma("omp parallel num_threads((int)threads) if (threads > 1)") \
    {                                                                 \
        Team mine = penstock_team(NULL), *team = &mine;               \
        call;                                                         \
    }

void penstock_add_rms_norm(
    void *x, const void *delta, const void *weight, void *out, long rows, long n, double eps, long half, long threads) {
    ALONE(rows * n, 1 << 16, penstock_norm_rows(team, x, delta, weight, out, rows, n, eps, half))
}

INLINE vec silu_times(vec gate, vec up) { return gate / (1.0f + exponential(-gate)) * up; }

/* Columns [from, to) of a row; `from` is a multiple of LANES. */
INLINE void silu_row(const void *gate_up, void *out, long n, long from, long to, const int half) {
    const void *up = at(gate_up, n, half);
    long i = from;
    for (; i + LANES <= to; i += LANES)
        store_lanes(out, i, silu_times(load_lanes(gate_up, i, half), load_lanes(up, i, half)), half);
    float left[LANES] = {0}, right[LANES] = {0};
    for (long k = i; k < to; k++) {
        left[k - i] = load(gate_up, k, half);
        right[k - i] = load(up, k, half);
    }
    vec last = silu_times(load_vec(left), load_vec(right));
    for (long k = i; k < to; k++) store(out, k, last[k - i], half);
}

#define SILU_COLUMNS 512 /* at a time, so that a single row is work for a team */

void penstock_silu_rows(Team *team, const void *gate_up, void *out, long rows, long n, long half) {
    long pieces = (n + SILU_COLUMNS - 1) / SILU_COLUMNS;
    MINE(i, rows * pieces) {
        long t = i / pieces, from = i % pieces * SILU_COLUMNS, to = from + SILU_COLUMNS < n ? from + SILU_COLUMNS : n;
        if (half) silu_row(at(gate_up, 2 * t * n, 1), (void *)at(out, t * n, 1), n, from, to, 1);
        else silu_row(at(gate_up, 2 * t * n, 0), (void *)at(out, t * n, 0), n, from, to, 0);
    }
    penstock_barrier(team);
}

void penstock_silu_mul(const void *gate_up, void *out, long rows, long n, long half, long threads) {
    ALONE(rows * n, 1 << 15, penstock_silu_rows(team, gate_up, out, rows, n, half))
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

void penstock_rotate_rows(Team *team, const Rotation *r) {
    long width = (r->heads + 2 * r->kv_heads) * r->head, head_stride = r->block_tokens * r->head, half = r->half;
    MINE(t, r->rows) {
        long block = r->kv_index[t] / r->block_tokens, offset = r->kv_index[t] % r->block_tokens, angle = t * (r->turned / 2);
        void *row = (void *)at(r->qkv, t * width, half);
        void *keys = (void *)at(r->pool, block * r->block_stride + offset * r->head, half);
        void *values = (void *)at(keys, r->kv_heads * head_stride, half);
        const float *c = r->cosine ? r->cosine + angle : NULL, *s = r->sine ? r->sine + angle : NULL;
        if (half)
            rotate_row(row, keys, values, c, s, r->query_weight, r->key_weight, (float)r->eps, r->heads, r->kv_heads,
                       r->head, r->turned, head_stride, 1);
        else
            rotate_row(row, keys, values, c, s, r->query_weight, r->key_weight, (float)r->eps, r->heads, r->kv_heads,
                       r->head, r->turned, head_stride, 0);
    }
    penstock_barrier(team);
}

void penstock_rotate_and_store(
    void *qkv, void *pool, const float *cosine, const float *sine, const void *query_weight, const void *key_weight,
    const int64_t *kv_index, long rows, long heads, long kv_heads, long head, long turned, long block_tokens,
    long block_stride, double eps, long half, long threads) {
    Rotation r = {qkv, pool, cosine, sine, query_weight, key_weight, kv_index, rows, heads, kv_heads, head, turned,
                  block_tokens, block_stride, eps, half};
    ALONE(rows * (heads + 2 * kv_heads) * head, 1 << 16, penstock_rotate_rows(team, &r))
}

/* ---- few rows times a matrix ---- */

typedef struct {
    const float *x; /* [rows, width], padded with zeros to whole vectors */
    const void *weight, *bias;
    void *out;
    long rows, inputs, outputs, width;
} Linear;

/* `count` (a constant) rows from `row` times LANES rows of the weight, which is read in the order it lies in memory. */
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
