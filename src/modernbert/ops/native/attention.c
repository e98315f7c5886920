/* Packed attention: softmax(q k') v inside each sequence, global or windowed, rotations included.

Flash attention's order of work (arXiv 2205.14135): a chunk of queries of one head stays in the cache while the
keys pass by in blocks. Products are made of tiles, ROWS queries by two vectors of keys or of dimensions, that
stay in registers. Sums are in fp32; with `half_products`, what is multiplied is bf16. */

#include "vectors.h"

#ifdef __AVX512F__
#define ROWS 12
#else
#define ROWS 6
#endif
#define PANEL (2 * LANES)
#define BLOCK 128 /* keys that pass by at once */
#define CHUNK 768 /* queries that stay; a multiple of ROWS */
#define AHEAD 16  /* tokens by which memory is asked for keys and values in advance */
#define MAX_DIM 128
#define LOWEST -1e30f
#define LOG2_E 1.44269504f

typedef struct {
    const void *qkv;       /* [T, 3, heads, dim]; the two numbers of a rotated pair are neighbours */
    const float *scales;   /* [T], by which rows of qkv are multiplied; or none */
    const float *turns;    /* [T, dim / 2, 2]: cosine and sine */
    void *out;             /* [T, heads, dim], of the dtype of qkv */
    const int32_t *chunks; /* [num_chunks, 3]: a sequence's first token, its length, the chunk's first query */
    int64_t num_chunks, heads, dim;
    int64_t window; /* tokens visible on each side; negative: all */
    int64_t half_input, half_products; /* the first only with the second */
    int64_t next; /* unit of work that nobody has taken yet */
} Attention;

/* What is fp32 and what bf16; known when the kernel is compiled, once for each. */
typedef enum { FP32, BF16_PRODUCTS, BF16 } Kind;

/* What a thread works on. A row of `dim` numbers takes `width` words: dim, or dim / 2 as halves. */
typedef struct {
    word keys[BLOCK * MAX_DIM] __attribute__((aligned(64)));   /* panels [width][PANEL] */
    word values[BLOCK * MAX_DIM] __attribute__((aligned(64))); /* panels [BLOCK][PANEL], one for PANEL dimensions */
    word rows[BLOCK * MAX_DIM] __attribute__((aligned(64)));   /* keys before they are in panels */
    word queries[CHUNK * MAX_DIM] __attribute__((aligned(64)));
    float sums[CHUNK * MAX_DIM] __attribute__((aligned(64))); /* of values, weighted */
    vector totals[CHUNK];                                     /* of weights */
    float highest[CHUNK];                                     /* score so far */
    float scores[ROWS * BLOCK] __attribute__((aligned(64)));
    half weights[ROWS * BLOCK] __attribute__((aligned(64)));
} Space;

/* A chunk of one head: queries [query, query + count) of the `length` tokens that begin at `start`. */
typedef struct {
    int64_t start, length, query, count, head;
} Part;

#ifdef __AVX512BF16__
INLINE vector add_pairs(vector c, vector a, vector b) {
    return (vector)_mm512_dpbf16_ps((__m512)c, (__m512bh)a, (__m512bh)b);
}
INLINE void narrow_all(half *to, const float *from) {
    _mm256_store_si256((__m256i *)to, (__m256i)_mm512_cvtneps_pbh(_mm512_load_ps(from)));
}
#else /* never called: the caller sees to it */
INLINE vector add_pairs(vector c, vector a, vector b) { return c; }
INLINE void narrow_all(half *to, const float *from) {}
#endif

/* c += a b for ROWS rows of a and a panel of b, `depth` words long. */
INLINE void multiply(vector c[ROWS][2], const word *a, int64_t stride, const word *b, int64_t depth, Kind kind) {
    for (int64_t i = 0; i < depth; i++) {
        vector left = load((const float *)(b + i * PANEL)), right = load((const float *)(b + i * PANEL + LANES));
        UNROLLED for (int r = 0; r < ROWS; r++) {
            vector x = all(as_float(a[r * stride + i]));
            c[r][0] = kind ? add_pairs(c[r][0], x, left) : c[r][0] + x * left;
            c[r][1] = kind ? add_pairs(c[r][1], x, right) : c[r][1] + x * right;
        }
    }
}

/* Where row `which` (0 query, 1 key, 2 value) of a token begins. */
INLINE int64_t place_of(const Attention *job, int64_t token, int64_t which, int64_t head) {
    return ((token * 3 + which) * job->heads + head) * job->dim;
}

INLINE float scale_of(const Attention *job, int64_t token) { return job->scales ? job->scales[token] : 1.0f; }

/* Rotate a query or key and store it as words. The halves of all pairs are apart then, in both alike. */
INLINE void rotate(const Attention *job, int64_t token, int64_t which, int64_t head, float scale, word *words, Kind kind) {
    int64_t size = job->dim / 2, place = place_of(job, token, which, head);
    const float *turn = job->turns + token * job->dim, *pairs = (const float *)job->qkv + place;
    const word *half_pairs = (const word *)((const half *)job->qkv + place);
    float low[MAX_DIM / 2], high[MAX_DIM / 2];
    scale *= scale_of(job, token);
    for (int64_t i = 0; i < size; i++) {
        float a = kind == BF16 ? low_of(half_pairs[i]) : pairs[2 * i];
        float b = kind == BF16 ? high_of(half_pairs[i]) : pairs[2 * i + 1];
        float c = turn[2 * i] * scale, s = turn[2 * i + 1] * scale;
        low[i] = a * c - b * s;
        high[i] = b * c + a * s;
    }
    if (kind != FP32) {
        for (int64_t i = 0; i < size; i++) words[i] = pair_of(low[i], high[i]);
    } else {
        memcpy(words, low, size * sizeof(float));
        memcpy(words + size, high, size * sizeof(float));
    }
}

INLINE void read_value(const Attention *job, int64_t token, int64_t head, float *x, Kind kind) {
    int64_t place = place_of(job, token, 2, head);
    float scale = scale_of(job, token);
    for (int64_t d = 0; d < job->dim; d++)
        x[d] = scale * (kind == BF16 ? low_of(((const half *)job->qkv)[place + d]) : ((const float *)job->qkv)[place + d]);
}

INLINE void take_queries(const Attention *job, Space *space, const Part *part, Kind kind) {
    int64_t dim = job->dim, width = kind ? dim / 2 : dim, filled = (part->count + ROWS - 1) / ROWS * ROWS;
    float scale = LOG2_E / __builtin_sqrtf((float)dim);
    for (int64_t i = 0; i < part->count; i++)
        rotate(job, part->start + part->query + i, 0, part->head, scale, space->queries + i * width, kind);
    memset(space->queries + part->count * width, 0, (filled - part->count) * width * sizeof(word));
    memset(space->sums, 0, filled * dim * sizeof(float));
    for (int64_t i = 0; i < filled; i++) {
        space->totals[i] = all(0.0f);
        space->highest[i] = LOWEST;
    }
}

/* Ask memory for a token's key and value; beyond the last token, for nothing that is used. */
INLINE void expect(const Attention *job, int64_t token, int64_t head, Kind kind) {
    int64_t size = kind == BF16 ? sizeof(half) : sizeof(float), bytes = job->dim * size;
    const char *key = (const char *)job->qkv + place_of(job, token, 1, head) * size;
    const char *value = key + job->heads * bytes;
    for (int64_t i = 0; i < bytes; i += 64) {
        __builtin_prefetch(key + i);
        __builtin_prefetch(value + i);
    }
}

/* Bring `count` keys, from `token` on, into panels; zeros fill the last one. */
INLINE void take_keys(const Attention *job, Space *space, int64_t token, int64_t head, int64_t count, Kind kind) {
    int64_t width = kind ? job->dim / 2 : job->dim, filled = (count + PANEL - 1) / PANEL * PANEL;
    word *rows = space->rows;
    for (int64_t j = 0; j < count; j++) {
        expect(job, token + j + AHEAD, head, kind);
        rotate(job, token + j, 1, head, 1.0f, rows + j * width, kind);
    }
    memset(rows + count * width, 0, (filled - count) * width * sizeof(word));
    for (int64_t j = 0; j < filled; j += PANEL)
        for (int64_t i = 0; i < width; i++)
            for (int64_t k = 0; k < PANEL; k++) space->keys[j * width + i * PANEL + k] = rows[(j + k) * width + i];
}

/* The same for values; two neighbours make a word of halves. */
INLINE void take_values(const Attention *job, Space *space, int64_t token, int64_t head, int64_t count, Kind kind) {
    int64_t dim = job->dim, filled = (count + PANEL - 1) / PANEL * PANEL, step = kind ? 2 : 1;
    float value[MAX_DIM], next[MAX_DIM];
    for (int64_t j = 0; j < filled; j += step) {
        if (j < count) read_value(job, token + j, head, value, kind);
        else memset(value, 0, sizeof value);
        if (kind && j + 1 < count) read_value(job, token + j + 1, head, next, kind);
        else memset(next, 0, sizeof next);
        for (int64_t d = 0; d < dim; d++) {
            word *row = space->values + (d / PANEL * PANEL * BLOCK + j * PANEL) / step;
            row[d % PANEL] = kind ? pair_of(value[d], next[d]) : word_of(value[d]);
        }
    }
}

/* Hide a row's scores of keys outside [low, high]; the row's first score, at `from`, is of key `key + from`. */
INLINE void hide(float *scores, int64_t key, int64_t from, int64_t to, int64_t low, int64_t high) {
    int_vector lanes;
    for (int i = 0; i < LANES; i++) lanes[i] = i;
    for (int64_t j = from; j < to; j += LANES) {
        int_vector keys = lanes + (int32_t)(key + j);
        int_vector seen = (keys >= (int32_t)low) & (keys <= (int32_t)high);
        store(scores + j, either(seen, load(scores + j), all(-__builtin_inff())));
    }
}

/* Turn row r of a tile's scores into weights relative to the highest score so far. */
INLINE void weigh(Space *space, int64_t row, int64_t r, int64_t from, int64_t to, int64_t dim, Kind kind) {
    float *scores = space->scores + r * BLOCK;
    vector best = load(scores + from);
    for (int64_t j = from + LANES; j < to; j += LANES) best = higher_of(best, load(scores + j));
    float highest = highest_of(best);
    if (highest > space->highest[row]) {
        vector shrink = exp2_of(all(space->highest[row] - highest));
        float *sums = space->sums + row * dim;
        for (int64_t d = 0; d < dim; d += LANES) store(sums + d, load(sums + d) * shrink);
        space->totals[row] *= shrink;
        space->highest[row] = highest;
    }
    vector reference = all(space->highest[row]), total = space->totals[row];
    for (int64_t j = from; j < to; j += LANES) {
        vector weight = exp2_of(load(scores + j) - reference);
        total += weight;
        store(scores + j, weight);
        if (kind) narrow_all(space->weights + r * BLOCK + j, scores + j);
    }
    space->totals[row] = total;
}

/* Let the tile of queries at `row` of the chunk see keys [from, to) of the block that begins at `key`. */
INLINE void see(const Attention *job, Space *space, const Part *part, int64_t row, int64_t key, int64_t from,
                int64_t to, int is_masked, Kind kind) {
    int64_t dim = job->dim, step = kind ? 2 : 1, width = dim / step, query = part->query + row;
    for (int64_t j = from; j < to; j += PANEL) {
        vector c[ROWS][2];
        UNROLLED for (int r = 0; r < ROWS; r++) c[r][0] = c[r][1] = all(0.0f);
        multiply(c, space->queries + row * width, width, space->keys + j * width, width, kind);
        UNROLLED for (int r = 0; r < ROWS; r++) {
            store(space->scores + r * BLOCK + j, c[r][0]);
            store(space->scores + r * BLOCK + j + LANES, c[r][1]);
        }
    }
    int64_t reach = job->window < 0 ? part->length : job->window;
    for (int64_t r = 0; r < ROWS; r++) {
        if (is_masked)
            hide(space->scores + r * BLOCK, key, from, to, query + r - reach, smaller(query + r + reach, part->length - 1));
        weigh(space, row + r, r, from, to, dim, kind);
    }
    const word *weights = (const word *)(kind ? (void *)space->weights : (void *)space->scores);
    for (int64_t d = 0; d < dim; d += PANEL) {
        vector c[ROWS][2];
        float *sums = space->sums + row * dim + d;
        UNROLLED for (int r = 0; r < ROWS; r++) {
            c[r][0] = load(sums + r * dim);
            c[r][1] = load(sums + r * dim + LANES);
        }
        multiply(c, weights + from / step, BLOCK / step, space->values + (d * BLOCK + from * PANEL) / step,
                 (to - from) / step, kind);
        UNROLLED for (int r = 0; r < ROWS; r++) {
            store(sums + r * dim, c[r][0]);
            store(sums + r * dim + LANES, c[r][1]);
        }
    }
}

INLINE void write_out(const Attention *job, const Space *space, const Part *part, Kind kind) {
    int64_t dim = job->dim;
    for (int64_t i = 0; i < part->count; i++) {
        int64_t place = ((part->start + part->query + i) * job->heads + part->head) * dim;
        const float *sums = space->sums + i * dim;
        float share = 1 / sum_of(space->totals[i]);
        if (kind == BF16)
            for (int64_t d = 0; d < dim; d++) ((half *)job->out)[place + d] = narrow(sums[d] * share);
        else
            for (int64_t d = 0; d < dim; d++) ((float *)job->out)[place + d] = sums[d] * share;
    }
}

INLINE void attend_part(const Attention *job, Space *space, const Part *part, Kind kind) {
    int64_t length = part->length, reach = job->window < 0 ? length : job->window;
    int64_t end = smaller(length, part->query + part->count + reach);
    take_queries(job, space, part, kind);
    for (int64_t key = larger(0, part->query - reach); key < end; key += BLOCK) {
        int64_t count = smaller(BLOCK, end - key);
        take_keys(job, space, part->start + key, part->head, count, kind);
        take_values(job, space, part->start + key, part->head, count, kind);
        for (int64_t row = 0; row < part->count; row += ROWS) {
            int64_t first = part->query + row, last = first + ROWS - 1; /* queries of the tile */
            int64_t from = larger(0, first - reach - key) / PANEL * PANEL;
            int64_t to = smaller(count, last + reach + 1 - key) + PANEL - 1;
            to = to / PANEL * PANEL;
            if (from >= to) continue;
            int all_seen = key + from >= last - reach && key + to - 1 <= first + reach && key + to <= length;
            if (all_seen) see(job, space, part, row, key, from, to, 0, kind);
            else see(job, space, part, row, key, from, to, 1, kind);
        }
    }
    write_out(job, space, part, kind);
}

static void attend_some(void *argument) {
    Attention *job = argument;
    Space space;
    for (;;) {
        int64_t unit = __atomic_fetch_add(&job->next, 1, __ATOMIC_RELAXED);
        if (unit >= job->num_chunks * job->heads) return;
        const int32_t *chunk = job->chunks + unit / job->heads * 3;
        Part part = {chunk[0], chunk[1], chunk[2], smaller(CHUNK, chunk[1] - chunk[2]), unit % job->heads};
        if (job->half_input) attend_part(job, &space, &part, BF16);
        else if (job->half_products) attend_part(job, &space, &part, BF16_PRODUCTS);
        else attend_part(job, &space, &part, FP32);
    }
}

int queries_of_a_chunk(void) { return CHUNK; }

void attend(Attention *job, Parallel *parallel, unsigned num_threads) { parallel(attend_some, job, num_threads, 0); }
