/* All layers of a decoder (models/decoder.py) in one call, by one team of threads.
 *
 * What is computed, and in which order, is what the kernels give one by one, to the bit: a layer is the same functions.
 * Working memory is the caller's, so that no layer asks for any.
 */
#include <string.h>

#include "team.h"

typedef struct {
    const void *attention_norm, *mlp_norm, *attention_output_norm, *mlp_output_norm; /* of outputs: NULL: none */
    const void *query_norm, *key_norm;                                              /* NULL: none */
    Matrix qkv, out, gate_up, down;
    double scale;
    long kind; /* number in the step's plans */
} Layer;

typedef struct {
    const Layer *layers;
    long count, hidden, inner, heads, kv_heads, head, half;
    double eps, softcap;
} Model;

/* What layers of one kind have in common: the window of attention (0: none), and angles [rows, turned / 2]. */
typedef struct {
    long window, turned;
    const float *cosine, *sine;
} Kind;

typedef struct {
    void *x, *delta; /* [rows, hidden]: in, the embeddings; out, the last layer's, which `delta` is not added to yet */
    void *pool;      /* at the keys of layer 0 in block 0 */
    const int64_t *kv_index;
    long rows, layer_stride; /* elements of the pool */
    const Kind *kinds;
    long kind_count;
    Sequences sequences;
    double *seconds; /* NULL, or [PARTS]: what each part took is added */
} Step;

enum { NORM, QKV, ROPE, ATTENTION, OUT, GATE_UP, ACTIVATION, DOWN, PARTS };
#define MOST_KINDS 8

static size_t lines(size_t bytes) { return (bytes + 63) / 64 * 64; }
static size_t larger_of(size_t a, size_t b) { return a > b ? a : b; }

/* Where intermediate results are. `from` NULL: only counts the bytes. */
typedef struct { void *h, *qkv, *gate_up, *room; char *taken; } Places;
static size_t lay_out(const Model *m, long rows, long threads, char *from, Places *at) {
    size_t element = m->half ? 2 : 4, queries = (size_t)(m->heads * m->head), keys = (size_t)(m->kv_heads * m->head);
    size_t widest = larger_of(larger_of((size_t)m->hidden, queries), (size_t)m->inner), room = 0;
    size_t gate_up = (size_t)m->inner * 2;
    for (long i = 0; i < m->count; i++) {
        const Layer *l = m->layers + i;
        const Matrix *all[] = {&l->qkv, &l->out, &l->gate_up, &l->down};
        for (int k = 0; k < 4; k++) room = larger_of(room, penstock_room(all[k], rows, m->half));
    }
    /* What attention reads has been read before the MLP writes: one place for both. */
    size_t sizes[] = {lines(rows * widest * element), lines(rows * larger_of(queries + 2 * keys, gate_up) * element),
                      lines(room), penstock_team_bytes(threads)};
    void **places[] = {&at->h, &at->qkv, &at->room, (void **)&at->taken};
    size_t sum = 0;
    for (int i = 0; i < 4; sum += sizes[i++])
        if (from) *places[i] = from + sum;
    if (from) at->gate_up = at->qkv;
    return sum;
}

/* Bytes of working memory for a step. */
long penstock_layers_bytes(const Model *m, long rows, long threads) {
    Places unused;
    return (long)lay_out(m, rows, threads, NULL, &unused);
}

typedef struct { double *seconds, last; } Clock;
static inline void tell(Clock *clock, int part) {
    if (!clock->seconds) return;
    double now = omp_get_wtime();
    clock->seconds[part] += now - clock->last;
    clock->last = now;
}

static void run_layer(Team *team, const Model *m, const Step *s, const Places *p, AttentionPlan *const *plans, long number,
                      Clock *clock) {
    const Layer *l = m->layers + number;
    const Kind *kind = s->kinds + l->kind;
    long rows = s->rows, half = m->half;
    char *pool = (char *)s->pool + number * s->layer_stride * (half ? 2 : 4);
    Rotation rotation = {
        .qkv = p->qkv, .pool = pool, .cosine = kind->cosine, .sine = kind->sine, .query_weight = l->query_norm,
        .key_weight = l->key_norm, .kv_index = s->kv_index, .rows = rows, .heads = m->heads, .kv_heads = m->kv_heads,
        .head = m->head, .turned = kind->turned, .block_tokens = s->sequences.block_tokens,
        .block_stride = s->sequences.block_stride, .eps = m->eps, .half = half};
    penstock_norm_rows(team, s->x, number ? s->delta : NULL, l->attention_norm, p->h, rows, m->hidden, m->eps, half);
    tell(clock, NORM);
    penstock_multiply(team, &l->qkv, p->h, p->qkv, rows, half, p->room);
    tell(clock, QKV);
    penstock_rotate_rows(team, &rotation);
    tell(clock, ROPE);
    penstock_attend(team, plans[l->kind], p->qkv, pool, p->h, l->scale);
    tell(clock, ATTENTION);
    penstock_multiply(team, &l->out, p->h, s->delta, rows, half, p->room);
    tell(clock, OUT);
    if (l->attention_output_norm)
        penstock_norm_rows(team, s->delta, NULL, l->attention_output_norm, s->delta, rows, m->hidden, m->eps, half);
    penstock_norm_rows(team, s->x, s->delta, l->mlp_norm, p->h, rows, m->hidden, m->eps, half);
    tell(clock, NORM);
    penstock_multiply(team, &l->gate_up, p->h, p->gate_up, rows, half, p->room);
    tell(clock, GATE_UP);
    penstock_silu_rows(team, p->gate_up, p->h, rows, m->inner, half);
    tell(clock, ACTIVATION);
    penstock_multiply(team, &l->down, p->h, s->delta, rows, half, p->room);
    tell(clock, DOWN);
    if (l->mlp_output_norm)
        penstock_norm_rows(team, s->delta, NULL, l->mlp_output_norm, s->delta, rows, m->hidden, m->eps, half);
    tell(clock, NORM);
}

/* Puts a step's rows through all layers. `memory`: as many bytes as penstock_layers_bytes says, aligned to 64.
 * Returns 0, or 1 when there was no memory for planning attention. */
int penstock_layers(const Model *m, const Step *s, char *memory, long threads) {
    AttentionPlan *plans[MOST_KINDS] = {NULL};
    Places places;
    int failed = s->kind_count > MOST_KINDS;
    for (long k = 0; k < s->kind_count && !failed; k++) {
        plans[k] = penstock_plan_attention(&s->sequences, s->kinds[k].window, m->softcap, m->half, threads);
        failed = !plans[k];
    }
    lay_out(m, s->rows, threads, memory, &places);
    memset(places.taken, 0, penstock_team_bytes(threads));
    if (!failed) {
        #pragma omp parallel num_threads((int)threads) if (threads > 1)
        {
            Team team = penstock_team(places.taken);
            Clock clock = {omp_get_thread_num() ? NULL : s->seconds, s->seconds ? omp_get_wtime() : 0};
            for (long i = 0; i < m->count; i++) run_layer(&team, m, s, &places, plans, i, &clock);
        }
    }
    for (long k = 0; k < MOST_KINDS; k++) penstock_free_plan(plans[k]);
    return failed;
}
