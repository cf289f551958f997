/* What one call of many kernels is made of: each works inside a team of threads that is already there.
 *
 * A function here is called by all threads of a team with the same arguments, and returns when all of it is done and
 * seen by all. Waking a team, and calling from Python, costs several microseconds: a decode step of one sequence reads
 * some matrices in ten, so the layers of a model are one call (layers.c). Outside of a parallel region the team is the
 * caller alone.
 */
#ifndef PENSTOCK_TEAM_H
#define PENSTOCK_TEAM_H
#include <omp.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>

enum { FLOAT32, BFLOAT16, INT8_WEIGHTS, INT8, INT4, FLOAT28 };

/* A packed weight [outputs, inputs] of a kind above, and its bias. */
typedef struct {
    const void *packed, *bias;
    const float *scales;  /* int8: [outputs] */
    const int32_t *sums;  /* INT8: 128 times each output's sum */
    long outputs, inputs, kind;
} Matrix;

#define TEAM_LINE 64 /* bytes that threads do not share */

/* Work that is dealt out: a thread begins with a stretch of its own, which it reads in order, and then takes from the
 * ends of the others'. What is taken of a stretch, from its front and (in the upper half) from its end, is in `taken`;
 * of two such tables one is in use while each thread clears its line of the other. */
typedef struct {
    char *taken; /* [2][threads][TEAM_LINE] */
    int me, threads, turn;
} Team;

static inline size_t penstock_team_bytes(long threads) { return (size_t)threads * 2 * TEAM_LINE; }
/* `taken` must be zeros before the first. */
static inline Team penstock_team(char *taken) {
    return (Team){taken, omp_get_thread_num(), omp_get_num_threads(), 0};
}

static inline uint64_t *penstock_taken(const Team *team, int turn, int thread) {
    return (uint64_t *)(team->taken + ((long)turn * team->threads + thread) * TEAM_LINE);
}

/* To be called by all before the first penstock_take, after any barrier that ended the last work. */
static inline void penstock_deal(Team *team) {
    team->turn ^= 1;
    *penstock_taken(team, team->turn ^ 1, team->me) = 0;
}

/* The next of `count` items for this thread, as many as `most` of them, from the one returned on; -1: none is left. */
static inline long penstock_take(const Team *team, long count, long most, long *got) {
    for (int i = 0; i < team->threads; i++) {
        int whose = (team->me + i) % team->threads;
        long begin = count * whose / team->threads, end = count * (whose + 1) / team->threads;
        uint64_t *taken = penstock_taken(team, team->turn, whose), seen = __atomic_load_n(taken, __ATOMIC_RELAXED);
        for (;;) {
            long front = (long)(seen & 0xffffffffu), back = (long)(seen >> 32), left = end - begin - front - back;
            if (left <= 0) break;
            long n = left < most ? left : most;
            uint64_t then = seen + ((uint64_t)n << (i ? 32 : 0));
            if (!__atomic_compare_exchange_n(taken, &seen, then, 0, __ATOMIC_RELAXED, __ATOMIC_RELAXED)) continue;
            *got = n;
            return i ? end - back - n : begin + front;
        }
    }
    return -1;
}

static inline void penstock_barrier(const Team *team) {
    if (team->threads > 1) {
        #pragma omp barrier
    }
}

/* ---- products.c, products_int8.c, products_int4.c ---- */

/* Bytes of working memory for `rows` rows, of float or bfloat16 (`half`). */
size_t penstock_room(const Matrix *m, long rows, long half);
size_t penstock_room_int8(const Matrix *m, long rows);
size_t penstock_room_int4(const Matrix *m, long rows);
/* x [rows, inputs] times the weight, plus bias: out [rows, outputs], both of one type, float unless the kind allows
 * bfloat16. `room`: aligned to 64. */
void penstock_multiply(Team *team, const Matrix *m, const void *x, void *out, long rows, long half, void *room);
void penstock_multiply_int8(Team *team, const Matrix *m, const float *x, float *out, long rows, void *room);
void penstock_multiply_int4(Team *team, const Matrix *m, const float *x, float *out, long rows, void *room);

/* ---- native.c ---- */

void penstock_norm_rows(Team *team, void *x, const void *delta, const void *weight, void *out, long rows, long n,
                        double eps, long half);
void penstock_silu_rows(Team *team, const void *gate_up, void *out, long rows, long n, long half);

/* The arguments of penstock_rotate_and_store. */
typedef struct {
    void *qkv, *pool;
    const float *cosine, *sine;
    const void *query_weight, *key_weight;
    const int64_t *kv_index;
    long rows, heads, kv_heads, head, turned, block_tokens, block_stride;
    double eps;
    long half;
} Rotation;
void penstock_rotate_rows(Team *team, const Rotation *r);

/* ---- attention.c ---- */

/* The arguments of penstock_attention that are the same in all layers of a step. */
typedef struct {
    const int32_t *first_row, *lengths, *table_rows, *tables, *group_first, *members, *shared;
    long qkv_stride, block_stride, table_stride, segments, groups, heads, kv_heads, head, block_tokens;
} Sequences;

/* Who computes what of a step's attention: the same in all layers with the same window (0: none). */
typedef struct AttentionPlan AttentionPlan;
/* NULL when memory ran out. */
AttentionPlan *penstock_plan_attention(const Sequences *s, long window, double softcap, long half, long threads);
void penstock_attend(Team *team, const AttentionPlan *plan, const void *qkv, const void *pool, void *out, double scale);
void penstock_free_plan(AttentionPlan *plan);
#endif
