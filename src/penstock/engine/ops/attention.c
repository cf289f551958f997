/* Attention over the paged pool in place: what kernels.py says of `attention`, which also names the dimensions.
 *
 * Two ways to put queries against the keys and values of one KV head. Few queries (a decoding sequence has as many as a
 * KV head has query heads): each is a row, its scores are dot products, and memory is what it waits for. Many (rows of
 * a prompt; all sequences with a common prefix): up to 48 lie side by side in the lanes of 3 vectors, so that keys and
 * values enter as single numbers, each used 48 times, and the softmax runs down the lanes without a shuffle.
 *
 * A long context of few queries is cut into parts of fixed length, and a common prefix is a part of its own. A part
 * leaves its output, the largest score and the sum of its weights; the parts of a query are then weighed by both
 * (log-sum-exp). Where parts begin depends on the sequence alone, so the number of threads changes no bit.
 */
#include "attention.h"
#include "team.h"

/* One query's parts, weighed by what each saw. */
INLINE void merge(const Attention *a, int segment, int kv_head, int number, float *sum, const int half) {
    int group = a->heads / a->kv_heads, head = a->head, count = a->parts_of[segment];
    long step = (long)a->kv_heads * rows_of(a, segment) * group * (head + 2);
    const float *first = a->parts + a->parts_at[segment] +
                         ((long)kv_head * rows_of(a, segment) * group + number) * (head + 2);
    float peak = NONE, total = 0;
    for (int i = 0; i < count; i++) peak = first[i * step] > peak ? first[i * step] : peak;
    memset(sum, 0, sizeof(float) * head);
    for (int i = 0; i < count; i++) {
        const float *part = first + i * step;
        float weight = exponential(all(part[0] - peak))[0];
        total += weight * part[1];
        for (int h = 0; h < head; h++) sum[h] += weight * part[2 + h];
    }
    Item whole = {.segment = segment, .group = -1, .kv_head = kv_head, .part = -1};
    finish(a, &whole, (Query){segment, number, 0}, sum, peak, total, half);
}

/* The items of one step, first those of groups; `items` NULL: only counts them, and fills in where parts lie.
 * Returns how many; `floats` is what the parts need. */
static long plan(const Attention *a, const int32_t *own, Item *items, long *floats) {
    int group = a->heads / a->kv_heads;
    long count = 0;
    *floats = 0;
#define ADD(...) { if (items) items[count] = (Item){__VA_ARGS__}; count++; }
    for (int g = 0; g < a->groups; g++) {
        int queries = (a->group_first[g + 1] - a->group_first[g]) * group, segment = a->members[a->group_first[g]];
        for (int k = 0; k < a->kv_heads; k++)
            for (int from = 0; from < queries; from += TILE)
                ADD(segment, g, k, from, least(from + TILE, queries), 0, a->shared[g] * a->block_tokens, 0)
    }
    for (int s = 0; s < a->segments; s++) {
        int rows = rows_of(a, s), queries = rows * group, position = a->lengths[s] - rows, length = a->lengths[s];
        int low = a->window ? most(own[s], position - a->window + 1) : own[s];
        int parts = 1, shared = own[s] > 0;
        if (queries <= TILE) parts = most(1, (length - low + PART / 2) / PART);
        int unit = least(a->block_tokens, CHUNK), size = ((length - low + parts - 1) / parts + unit - 1) / unit * unit;
        parts = (length - low + size - 1) / size;
        a->parts_of[s] = parts + shared;
        a->parts_at[s] = *floats;
        if (parts + shared > 1) *floats += (long)(parts + shared) * a->kv_heads * queries * (a->head + 2);
        for (int k = 0; k < a->kv_heads; k++) {
            if (parts + shared > 1) {
                for (int from = low, part = shared; from < length; from += size, part++)
                    ADD(s, -1, k, 0, queries, from, least(from + size, length), part)
                continue;
            }
            /* Late tiles see most tokens: they go first, so that no thread is left with a long one at the end. */
            for (int from = (queries - 1) / TILE * TILE; from >= 0; from -= TILE) {
                int to = least(from + TILE, queries), here = position + from / group;
                ADD(s, -1, k, from, to, a->window ? most(0, here - a->window + 1) : 0,
                    position + (to - 1) / group + 1, -1)
            }
        }
    }
#undef ADD
    return count;
}

/* Floats of one thread's working memory; with `base`, `w` is laid out over it. */
static size_t lay_out(Scratch *w, float *base, int width) {
    size_t tile = (size_t)width * TILE, some = (size_t)CHUNK * width, sum = 0;
    size_t scores = most(CHUNK * TILE, FEW * LONGEST);
    size_t sizes[] = {tile, tile, scores, (size_t)LANES * width, some, some, TILE, TILE, TILE, TILE};
    float **fields[] = {&w->q, &w->out, &w->p, &w->rows, &w->keys, &w->values, &w->peak, &w->total,
                        (float **)&w->first, (float **)&w->last};
    for (int i = 0; i < 10; sum += sizes[i++])
        if (base) *fields[i] = base + sum;
    return sum;
}

struct AttentionPlan {
    Attention a;
    Item *items;
    float *memory; /* scratch of each thread, then parts */
    long count, floats, half;
    size_t each;
};

void penstock_free_plan(AttentionPlan *plan) {
    if (!plan) return;
    free(plan->memory);
    free(plan->items);
    free(plan->a.parts_of);
    free(plan->a.parts_at);
    free(plan);
}

AttentionPlan *penstock_plan_attention(const Sequences *s, long window, double softcap, long half, long threads) {
    AttentionPlan *p = calloc(1, sizeof *p);
    int32_t *own = calloc(s->segments, sizeof(int32_t));
    if (!p || !own) return free(p), free(own), NULL;
    Attention *a = &p->a;
    *a = (Attention){
        .first_row = s->first_row, .lengths = s->lengths, .table_rows = s->table_rows, .tables = s->tables,
        .group_first = s->group_first, .members = s->members, .shared = s->shared, .qkv_stride = s->qkv_stride,
        .block_stride = s->block_stride, .table_stride = s->table_stride, .segments = (int)s->segments,
        /* A window hides the beginning, and from each row another part of it; a part is one tile's. */
        .groups = window || s->heads > TILE * s->kv_heads ? 0 : (int)s->groups,
        .heads = (int)s->heads, .kv_heads = (int)s->kv_heads, .head = (int)s->head,
        .block_tokens = (int)s->block_tokens, .window = (int)window, .softcap = (float)softcap};
    a->parts_of = calloc(s->segments, sizeof(int32_t));
    a->parts_at = calloc(s->segments, sizeof(long));
    p->half = half;
    p->each = lay_out(NULL, NULL, width_of(a));
    if (a->parts_of && a->parts_at) {
        for (int g = 0; g < a->groups; g++)
            for (int m = a->group_first[g]; m < a->group_first[g + 1]; m++)
                own[a->members[m]] = a->shared[g] * a->block_tokens;
        p->count = plan(a, own, NULL, &p->floats);
        p->items = malloc(sizeof(Item) * p->count);
        p->memory = malloc(sizeof(float) * (p->each * threads + p->floats));
    }
    if (!p->items || !p->memory) {
        free(own);
        return penstock_free_plan(p), NULL;
    }
    a->parts = p->memory + p->each * threads;
    plan(a, own, p->items, &p->floats);
    free(own);
    return p;
}

void penstock_attend(Team *team, const AttentionPlan *p, const void *qkv, const void *pool, void *out, double scale) {
    Attention a = p->a;
    Scratch w = {.softcap = a.softcap};
    int half = (int)p->half, group = a.heads / a.kv_heads;
    a.qkv = qkv;
    a.pool = pool;
    a.out = out;
    a.scale = (float)scale;
    lay_out(&w, p->memory + p->each * team->me, width_of(&a));
    penstock_deal(team);
    for (long i, got; (i = penstock_take(team, p->count, 1, &got)) >= 0;) {
        const Item *item = p->items + i, *next = i + 1 < p->count ? item + 1 : NULL;
        begin(&a, &w, item);
        int few = item->group < 0 && item->to - item->from <= FEW && item->high - item->low <= LONGEST - LANES;
        if (few) penstock_attend_rows(&a, &w, item, next, half);
        else penstock_attend_tile(&a, &w, item, next, half);
    }
    penstock_barrier(team);
    if (!p->floats) return;
    #pragma omp for schedule(static)
    for (int s = 0; s < a.segments; s++) {
        int queries = rows_of(&a, s) * group;
        for (int q = 0; a.parts_of[s] > 1 && q < a.kv_heads * queries; q++) {
            if (half) merge(&a, s, q / queries, q % queries, w.rows, 1);
            else merge(&a, s, q / queries, q % queries, w.rows, 0);
        }
    }
}

/* Returns 0, or 1 when memory ran out. */
int penstock_attention(
    const void *qkv, const void *pool, void *out, const int32_t *first_row, const int32_t *lengths,
    const int32_t *table_rows, const int32_t *tables, const int32_t *group_first, const int32_t *members,
    const int32_t *shared, long qkv_stride, long block_stride, long table_stride, long segments, long groups, long heads,
    long kv_heads, long head, long block_tokens, long window, double scale, double softcap, long half, long threads) {
    Sequences s = {first_row, lengths, table_rows, tables, group_first, members, shared, qkv_stride, block_stride,
                   table_stride, segments, groups, heads, kv_heads, head, block_tokens};
    long tokens = 0;
    for (int i = 0; i < segments; i++) tokens += (long)lengths[i] * (first_row[i + 1] - first_row[i]);
    /* Waking a team costs about as much as this many multiply-adds. */
    if (tokens * heads * head < 1 << 17) threads = 1;
    AttentionPlan *p = penstock_plan_attention(&s, window, softcap, half, threads);
    char *taken = p ? calloc(1, penstock_team_bytes(threads)) : NULL;
    if (!taken) return penstock_free_plan(p), 1;
    #pragma omp parallel num_threads((int)threads) if (threads > 1)
    {
        Team team = penstock_team(taken);
        penstock_attend(&team, p, qkv, pool, out, scale);
    }
    free(taken);
    penstock_free_plan(p);
    return 0;
}
