/* What the products of packed weights have in common: panels of 32 outputs, tiles of a few rows, both from cache.
 *
 * A packed weight [O, I] is a row of panels: panel p holds outputs 32p to 32p + 31, for each k all 32 side by side, so
 * that a product reads it once and in order; the last one is filled up with zeros. A tile of rows keeps its sums in
 * registers while it walks along k. Every sum goes up k in one chain, however many rows there are, so that a row's
 * result does not depend on the rows beside it.
 * Source: Anatomy of High-Performance Matrix Multiplication, Goto and van de Geijn, 2008.
 */
#ifdef __linux__
#include <sys/mman.h>
#endif
#include "team.h"
#define LANES 16 /* half a panel, whatever a register holds */
#include "vectors.h"

#define PANEL 32
/* Bytes of activations that stay in the second cache (1 MiB on the CPUs measured) beside a panel. */
#define ROWS_BYTES (512 << 10)
/* Bytes ahead that a single tile fetches: what it reads comes from memory, and hardware stops at each 4 KiB page. */
#define AHEAD 2048
/* Waking a team costs about as much as this many multiply-adds. */
#define WORTH_A_TEAM (1 << 17)

typedef lanes ints; /* sums of products of int8 */

/* What one register holds. Where that is less than 16 floats, GCC keeps vectors of 16 in memory, and an innermost loop
 * takes ten times as long. */
#if defined(__AVX512F__)
#define PART 16
#elif defined(__AVX__)
#define PART 8
#else
#define PART 4
#endif
typedef float part __attribute__((vector_size(4 * PART)));
typedef uint32_t part_words __attribute__((vector_size(4 * PART)));
typedef int32_t part_ints __attribute__((vector_size(4 * PART)));
INLINE part load_part(const float *p) { part v; memcpy(&v, p, sizeof v); return v; }
INLINE void store_part(float *p, part v) { memcpy(p, &v, sizeof v); }
INLINE part_words load_part_words(const void *p) { part_words v; memcpy(&v, p, sizeof v); return v; }
INLINE part as_part(part_words w) { part v; memcpy(&v, &w, sizeof v); return v; }

INLINE words load_words(const void *p) { words v; memcpy(&v, p, sizeof v); return v; }
INLINE vec as_floats(words w) { vec v; memcpy(&v, &w, sizeof v); return v; }

INLINE long least(long a, long b) { return a < b ? a : b; }
INLINE long most(long a, long b) { return a > b ? a : b; }
INLINE long divide_up(long a, long b) { return (a + b - 1) / b; }
INLINE long round_up(long a, long b) { return divide_up(a, b) * b; }
INLINE void *cache_lines(long bytes) { return aligned_alloc(64, (size_t)round_up(bytes, 64)); }

/* First row of part t when `rows` are cut into `parts` of almost the same height. */
INLINE long part_start(long rows, long parts, long t) { return rows / parts * t + least(t, rows % parts); }

/* The part that `row` is in. */
INLINE long part_of(long rows, long parts, long row) {
    long least_rows = rows / parts, larger = rows % parts, in_larger = larger * (least_rows + 1);
    return row < in_larger ? row / (least_rows + 1) : larger + (row - in_larger) / least_rows;
}

/* Bytes between rows of `bytes`: a multiple of a large power of two apart, all would want the same few cache lines. */
INLINE long apart(long bytes) { return bytes % 1024 ? bytes : bytes + 64; }

/* Panels taken at a time by a thread: eight times per thread, so that a late one does not keep the others waiting. */
INLINE long share(long panels, long threads) { return most(1, panels / (8 * threads)); }

/* Threads for a product on its own. */
INLINE long team_for(const Matrix *m, long threads) { return m->inputs * m->outputs < WORTH_A_TEAM ? 1 : threads; }

/* One product as a call of its own. Returns 0, or 1 when memory ran out. */
#define PRODUCT_ALONE(m, room_bytes, multiply)                                                     \
    long team_size = team_for(&m, threads), lines = (long)penstock_team_bytes(team_size);          \
    char *memory = cache_lines(lines + (long)(room_bytes));                                        \
    if (!memory) return 1;                                                                         \
    memset(memory, 0, lines);                                                                      \
    _Pragma("omp parallel num_threads((int)team_size) if (team_size > 1)")                         \
    {                                                                                              \
        Team team = penstock_team(memory);                                                         \
        void *room = memory + lines;                                                               \
        multiply;                                                                                  \
    }                                                                                              \
    free(memory);                                                                                  \
    return 0;

/* Pages of 2 MiB for memory that is about to be written: a stream through 4 KiB pages is a fifth slower. */
INLINE void ask_for_large_pages(void *memory, long bytes) {
#ifdef MADV_HUGEPAGE
    uintptr_t first = ((uintptr_t)memory + 4095) & ~(uintptr_t)4095, end = ((uintptr_t)memory + bytes) & ~(uintptr_t)4095;
    if (end > first) madvise((void *)first, end - first, MADV_HUGEPAGE);
#endif
}

/* A tile's finished sums, [mr, 32], plus bias to columns o to o + n of `out` [rows, outputs], n <= 32. */
INLINE void finish(void *out, long row, long outputs, long o, long n, const float *sums, long mr, const void *bias,
                   const int half) {
    float b[PANEL] = {0};
    if (bias) for (long i = 0; i < n; i++) b[i] = load(bias, o + i, half);
    for (long r = 0; r < mr; r++) {
        long to = (row + r) * outputs + o;
        const float *s = sums + r * PANEL;
        if (!half && n == PANEL) {
            store_vec((float *)out + to, load_vec(s) + load_vec(b));
            store_vec((float *)out + to + LANES, load_vec(s + LANES) + load_vec(b + LANES));
        } else for (long i = 0; i < n; i++) store(out, to + i, s[i] + b[i], half);
    }
}
