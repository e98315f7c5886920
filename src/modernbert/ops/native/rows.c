/* Passes over rows of numbers, each read once and written once: norms, the GeGLU's gate, 8-bit codes. */

#include "vectors.h"

#define MAX_WIDTH 16384

typedef enum { AS_THEY_ARE, NORMED, GATED } Source;
typedef enum { FP32, BF16, CODES } Target;

typedef struct {
    const float *x;      /* [num_rows, width]; [num_rows, 2 * width] for GATED: what the GELU takes, then the gate */
    const float *scales; /* GATED: [num_rows], by which x is multiplied first */
    const float *weight; /* NORMED: [width] */
    void *out;           /* [num_rows, width] */
    float *steps;        /* CODES: [num_rows]; a number is (code - 128) * step */
    int64_t num_rows, width, source, target;
    double eps;
    int64_t next; /* row that nobody has taken yet */
} Rows;

#define ROWS_AT_ONCE 16

/* x * P(N(0, 1) < x), by Abramowitz and Stegun's 7.1.26 for erf, to 2e-7. */
INLINE vector gelu(vector x) {
    vector size = higher_of(x, -x), z = size * 0.70710678f;
    vector t = 1.0f / (1.0f + 0.3275911f * z);
    vector y = 1.061405429f * t - 1.453152027f;
    y = y * t + 1.421413741f;
    y = y * t - 0.284496736f;
    y = y * t + 0.254829592f;
    vector tail = 0.5f * y * t * exp2_of(z * z * -1.44269504f); /* P(N(0, 1) > |x|) */
    return x * either(x > 0.0f, 1.0f - tail, tail);
}

INLINE void norm(const Rows *job, const float *x, float *row) {
    int64_t width = job->width;
    vector sum = all(0.0f), squares = all(0.0f);
    for (int64_t i = 0; i < width; i += LANES) sum += load(x + i);
    float mean = sum_of(sum) / width;
    for (int64_t i = 0; i < width; i += LANES) {
        vector distance = load(x + i) - mean;
        squares += distance * distance;
    }
    float scale = 1 / __builtin_sqrtf(sum_of(squares) / width + (float)job->eps);
    for (int64_t i = 0; i < width; i += LANES) store(row + i, (load(x + i) - mean) * scale * load(job->weight + i));
}

INLINE void gate(const Rows *job, const float *x, float scale, float *row) {
    for (int64_t i = 0; i < job->width; i += LANES)
        store(row + i, gelu(load(x + i) * scale) * (load(x + job->width + i) * scale));
}

INLINE void write_codes(const float *row, int64_t width, uint8_t *codes, float *step) {
    vector size = all(1e-12f);
    for (int64_t i = 0; i < width; i += LANES) size = higher_of(size, higher_of(load(row + i), -load(row + i)));
    *step = highest_of(size) / 127;
    float inverse = 1 / *step;
    for (int64_t i = 0; i < width; i++) codes[i] = (uint8_t)(int32_t)(row[i] * inverse + 128.5f); /* rounds */
}

INLINE void write_row(const Rows *job, int64_t at, const float *row) {
    int64_t width = job->width, place = at * width;
    if (job->target == CODES) write_codes(row, width, (uint8_t *)job->out + place, job->steps + at);
    else if (job->target == BF16)
        for (int64_t i = 0; i < width; i++) ((half *)job->out)[place + i] = narrow(row[i]);
    else memcpy((float *)job->out + place, row, width * sizeof(float));
}

static void convert_row(const Rows *job, int64_t at) {
    float row[MAX_WIDTH] __attribute__((aligned(64)));
    const float *x = job->x + at * job->width;
    if (job->source == NORMED) norm(job, x, row);
    if (job->source == GATED) gate(job, x + at * job->width, job->scales[at], row);
    write_row(job, at, job->source == AS_THEY_ARE ? x : row);
}

static void convert_some(void *argument) {
    Rows *job = argument;
    for (;;) {
        int64_t first = __atomic_fetch_add(&job->next, ROWS_AT_ONCE, __ATOMIC_RELAXED);
        if (first >= job->num_rows) return;
        for (int64_t at = first; at < smaller(first + ROWS_AT_ONCE, job->num_rows); at++) convert_row(job, at);
    }
}

void convert(Rows *job, Parallel *parallel, unsigned num_threads) { parallel(convert_some, job, num_threads, 0); }
