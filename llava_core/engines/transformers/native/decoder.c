/* A decoder's layers for rows of all requests at once.
 *
 * Rows are tokens; every row knows where its request keeps keys and values and how many came before it. What is carried
 * from layer to layer is float32.
 */
#include "tiles.h"

typedef struct {
    const bf16 *qkv, *o, *gate, *up, *down; /* packed */
    const float *qkv_bias;                  /* or null */
    const float *norm_in, *norm_mid;
    const float *norm_q, *norm_k;           /* per head, or null */
} Layer;

typedef struct {
    int64_t layers, hidden, inner, heads, kv_heads, dim, vocabulary, window; /* window 0: all that came before */
    float eps, scale;
    const Layer *layer;
    const float *norm_out;
    const bf16 *head; /* packed */
} Model;

typedef struct {
    int64_t rows;
    float *x;               /* (rows, hidden), in and out */
    const float *cos, *sin; /* (rows, dim) */
    bf16 *const *store;     /* of each row: (layers, 2, kv heads, capacity, dim) */
    const int64_t *capacity, *place; /* of each row: tokens of room, and which token of its request it is */
    const int64_t *singles; /* rows that are attended to one by one */
    int64_t single_count;
    const int64_t *chunks;  /* (chunks, 3): first row, rows, and where in `packed` its keys and values go */
    int64_t chunk_count;
    bf16 *normed;           /* (rows + 32, width(hidden)) */
    bf16 *qkv;              /* (rows + 32, heads and twice kv heads times dim) */
    bf16 *attended;         /* (rows + 32, width(heads * dim)) */
    bf16 *gated;            /* (rows + 32, width(inner)) */
    bf16 *packed;           /* for each chunk (2, kv heads, tokens up to its end, rounded up to 32, dim) */
    float *scores;          /* (threads, 32 + 16 rows, room(longest)) */
    int64_t longest;
    const int64_t *watched; /* rows whose queries are wanted */
    int64_t watched_count;
    bf16 *queries;          /* (layers, watched, heads * dim), turned */
} Step;

static void norms(const Model *m, const Step *s, const float *weight)
{
#pragma omp for schedule(static)
    for (int64_t row = 0; row < s->rows; row++)
        norm(s->x + row * m->hidden, weight, m->hidden, m->eps, s->normed + row * width(m->hidden));
}

/* Turns one head by its position (halves turn together), after its norm where there is one. */
static void turn(bf16 *head, const float *norm_weight, const float *cos, const float *sin, int64_t dim, float eps, bf16 *to)
{
    float v[MOST_DIM] __attribute__((aligned(64)));
    for (int64_t i = 0; i < dim; i += 16) _mm512_store_ps(v + i, to_float(head + i));
    if (norm_weight) {
        __m512 by = _mm512_set1_ps(scale_of(v, dim, eps));
        for (int64_t i = 0; i < dim; i += 16)
            _mm512_store_ps(v + i, _mm512_mul_ps(_mm512_mul_ps(_mm512_load_ps(v + i), by), _mm512_loadu_ps(norm_weight + i)));
    }
    const int64_t half = dim / 2;
    for (int64_t i = 0; i < half; i += 16) {
        __m512 a = _mm512_load_ps(v + i), b = _mm512_load_ps(v + half + i);
        to_bf16(to + i, _mm512_fnmadd_ps(b, _mm512_loadu_ps(sin + i), _mm512_mul_ps(a, _mm512_loadu_ps(cos + i))));
        to_bf16(to + half + i,
                _mm512_fmadd_ps(a, _mm512_loadu_ps(sin + half + i), _mm512_mul_ps(b, _mm512_loadu_ps(cos + half + i))));
    }
}

static inline bf16 *kept(const Model *m, const Step *s, int64_t row, int64_t layer, int64_t which, int64_t head)
{
    return s->store[row] + (((layer * 2 + which) * m->kv_heads + head) * s->capacity[row]) * m->dim;
}

/* Queries are turned in place; keys, turned, and values go to where their request keeps them. */
static void place_keys(const Model *m, const Step *s, int64_t layer)
{
    const int64_t dim = m->dim, ld = (m->heads + 2 * m->kv_heads) * dim;
    const Layer *w = m->layer + layer;
#pragma omp for schedule(static)
    for (int64_t row = 0; row < s->rows; row++) {
        bf16 *qkv = s->qkv + row * ld;
        const float *cos = s->cos + row * dim, *sin = s->sin + row * dim;
        for (int64_t head = 0; head < m->heads; head++)
            turn(qkv + head * dim, w->norm_q, cos, sin, dim, m->eps, qkv + head * dim);
        const bf16 *values = qkv + (m->heads + m->kv_heads) * dim;
        for (int64_t head = 0; head < m->kv_heads; head++) {
            const int64_t at = s->place[row] * dim;
            turn(qkv + (m->heads + head) * dim, w->norm_k, cos, sin, dim, m->eps, kept(m, s, row, layer, 0, head) + at);
            memcpy(kept(m, s, row, layer, 1, head) + at, values + head * dim, dim * sizeof(bf16));
        }
    }
}

/* Queries that somebody wants to look at, before the next layer's take their place. */
static void keep_queries(const Model *m, const Step *s, int64_t layer)
{
    const int64_t size = m->heads * m->dim, ld = (m->heads + 2 * m->kv_heads) * m->dim;
#pragma omp for schedule(static)
    for (int64_t i = 0; i < s->watched_count; i++)
        memcpy(s->queries + (layer * s->watched_count + i) * size, s->qkv + s->watched[i] * ld, size * sizeof(bf16));
}

/* Sums of four vectors: (a, b, c, d). */
static inline __m128 sums(__m512 a, __m512 b, __m512 c, __m512 d)
{
    __m512 ab = _mm512_add_ps(_mm512_unpacklo_ps(a, b), _mm512_unpackhi_ps(a, b));
    __m512 cd = _mm512_add_ps(_mm512_unpacklo_ps(c, d), _mm512_unpackhi_ps(c, d));
    __m512 all = _mm512_add_ps(_mm512_castpd_ps(_mm512_unpacklo_pd(_mm512_castps_pd(ab), _mm512_castps_pd(cd))),
                        _mm512_castpd_ps(_mm512_unpackhi_pd(_mm512_castps_pd(ab), _mm512_castps_pd(cd))));
    __m256 half = _mm256_add_ps(_mm512_castps512_ps256(all), _mm512_extractf32x8_ps(all, 1));
    return _mm_add_ps(_mm256_castps256_ps128(half), _mm256_extractf128_ps(half, 1));
}

/* One query over `count` keys and values of its request. */
static void look(const bf16 *query, const bf16 *keys, const bf16 *values, int64_t count, int64_t dim, float scale,
                 float *scores, bf16 *to)
{
    const int64_t parts = dim / 32;
    __m512bh q[MOST_DIM / 32];
    for (int64_t p = 0; p < parts; p++) q[p] = (__m512bh)_mm512_loadu_si512(query + 32 * p);
    __m512 most = _mm512_set1_ps(-INFINITY);
    int64_t j = 0;
    for (; j + 4 <= count; j += 4) {
        const bf16 *k = keys + j * dim;
        __m512 a = _mm512_setzero_ps(), b = a, c = a, d = a;
        for (int64_t p = 0; p < parts; p++) {
            a = _mm512_dpbf16_ps(a, (__m512bh)_mm512_loadu_si512(k + 32 * p), q[p]);
            b = _mm512_dpbf16_ps(b, (__m512bh)_mm512_loadu_si512(k + dim + 32 * p), q[p]);
            c = _mm512_dpbf16_ps(c, (__m512bh)_mm512_loadu_si512(k + 2 * dim + 32 * p), q[p]);
            d = _mm512_dpbf16_ps(d, (__m512bh)_mm512_loadu_si512(k + 3 * dim + 32 * p), q[p]);
        }
        _mm_storeu_ps(scores + j, _mm_mul_ps(sums(a, b, c, d), _mm_set1_ps(scale)));
    }
    for (; j < count; j++) {
        __m512 a = _mm512_setzero_ps();
        for (int64_t p = 0; p < parts; p++)
            a = _mm512_dpbf16_ps(a, (__m512bh)_mm512_loadu_si512(keys + j * dim + 32 * p), q[p]);
        scores[j] = _mm512_reduce_add_ps(a) * scale;
    }
    for (j = count; j % 16; j++) scores[j] = -INFINITY;
    for (int64_t i = 0; i < count; i += 16) most = _mm512_max_ps(most, _mm512_loadu_ps(scores + i));
    most = _mm512_set1_ps(_mm512_reduce_max_ps(most));
    __m512 total = _mm512_setzero_ps();
    for (int64_t i = 0; i < count; i += 16) {
        __m512 s = _mm512_loadu_ps(scores + i);
        __m512 e = _mm512_maskz_mov_ps(_mm512_cmp_ps_mask(s, _mm512_set1_ps(-INFINITY), _CMP_NEQ_OQ),
                                       exponential(_mm512_sub_ps(s, most)));
        total = _mm512_add_ps(total, e);
        _mm512_storeu_ps(scores + i, e);
    }
    __m512 by = _mm512_set1_ps(1.0f / _mm512_reduce_add_ps(total));
    for (int64_t base = 0; base < dim; base += 64) {
        const int64_t lanes = (dim - base < 64 ? dim - base : 64) / 16;
        __m512 even[4], odd[4];
        for (int64_t p = 0; p < lanes; p++) even[p] = odd[p] = _mm512_setzero_ps();
        for (j = 0; j + 2 <= count; j += 2) {
            __m512 s0 = _mm512_set1_ps(scores[j]), s1 = _mm512_set1_ps(scores[j + 1]);
            const bf16 *v = values + j * dim + base;
            for (int64_t p = 0; p < lanes; p++) {
                even[p] = _mm512_fmadd_ps(s0, to_float(v + 16 * p), even[p]);
                odd[p] = _mm512_fmadd_ps(s1, to_float(v + dim + 16 * p), odd[p]);
            }
        }
        if (j < count)
            for (int64_t p = 0; p < lanes; p++)
                even[p] = _mm512_fmadd_ps(_mm512_set1_ps(scores[j]), to_float(values + j * dim + base + 16 * p), even[p]);
        for (int64_t p = 0; p < lanes; p++)
            to_bf16(to + base + 16 * p, _mm512_mul_ps(_mm512_add_ps(even[p], odd[p]), by));
    }
}

/* Attention of the rows that stand alone; each head of each row is a piece of work. */
static void look_singles(const Model *m, const Step *s, int64_t layer, int thread)
{
    const int64_t dim = m->dim, group = m->heads / m->kv_heads, ld = (m->heads + 2 * m->kv_heads) * dim;
    float *scores = s->scores + thread * scores_of_thread(s->longest);
#pragma omp for schedule(dynamic, 1) nowait
    for (int64_t piece = 0; piece < s->single_count * m->kv_heads; piece++) {
        const int64_t row = s->singles[piece / m->kv_heads], head = piece % m->kv_heads;
        const int64_t end = s->place[row] + 1, begin = first_seen(s->place[row], m->window);
        const bf16 *keys = kept(m, s, row, layer, 0, head) + begin * dim;
        const bf16 *values = kept(m, s, row, layer, 1, head) + begin * dim;
        for (int64_t g = 0; g < group; g++) {
            const int64_t q = head * group + g;
            look(s->qkv + row * ld + q * dim, keys, values, end - begin, dim, m->scale, scores,
                 s->attended + row * width(m->heads * dim) + q * dim);
        }
    }
}

static inline const int64_t *chunk_at(const Step *s, int64_t index) { return s->chunks + 3 * index; }

/* One head's keys and values of a chunk's request, into the order of the tiles. */
static void pack_chunk(const Model *m, const Step *s, int64_t layer, const int64_t *chunk, int64_t head)
{
    const int64_t place = s->place[chunk[0]], end = place + chunk[1], size = whole_tiles(end) * m->dim;
    bf16 *to = s->packed + chunk[2] + head * size;
    pack_head(kept(m, s, chunk[0], layer, 0, head), kept(m, s, chunk[0], layer, 1, head), m->dim,
              first_seen(place, m->window) / 32 * 32, end, m->dim, to, to + m->kv_heads * size);
}

/* Attention of the chunk's rows from `begin`, up to 32, for one head of its queries. */
static void look_chunk(const Model *m, const Step *s, const int64_t *chunk, int64_t head, int64_t begin, float *scores)
{
    const int64_t dim = m->dim, ld = (m->heads + 2 * m->kv_heads) * dim, ldo = width(m->heads * dim);
    const int64_t tokens = whole_tiles(s->place[chunk[0]] + chunk[1]), row = chunk[0] + begin;
    const bf16 *keys = s->packed + chunk[2] + head / (m->heads / m->kv_heads) * tokens * dim;
    look_block(s->qkv + row * ld + head * dim, ld, chunk[1] - begin < 32 ? chunk[1] - begin : 32, keys,
               keys + m->kv_heads * tokens * dim, tokens, dim, m->scale, s->place[row], 1, m->window, scores,
               room(s->longest), s->attended + row * ldo + head * dim, ldo);
}

/* Attention of the chunks. Where there are heads enough for all threads, one thread does all of a head, so that what it
 * packed is still near; else all pack first, and then share the rows. */
static void look_chunks(const Model *m, const Step *s, int64_t layer, int thread, int threads)
{
    const int64_t group = m->heads / m->kv_heads, pieces = s->chunk_count * m->kv_heads;
    float *scores = s->scores + thread * scores_of_thread(s->longest);
    if (pieces >= 2 * threads) {
#pragma omp for schedule(dynamic, 1) nowait
        for (int64_t piece = 0; piece < pieces; piece++) {
            const int64_t *chunk = chunk_at(s, piece / m->kv_heads), head = piece % m->kv_heads;
            pack_chunk(m, s, layer, chunk, head);
            for (int64_t g = 0; g < group; g++)
                for (int64_t begin = 0; begin < chunk[1]; begin += 32)
                    look_chunk(m, s, chunk, head * group + g, begin, scores);
        }
        return;
    }
#pragma omp for schedule(static)
    for (int64_t piece = 0; piece < pieces; piece++)
        pack_chunk(m, s, layer, chunk_at(s, piece / m->kv_heads), piece % m->kv_heads);
    for (int64_t index = 0; index < s->chunk_count; index++) {
        const int64_t *chunk = chunk_at(s, index), blocks = (chunk[1] + 31) / 32;
        /* The last blocks see most, so they come first. */
#pragma omp for schedule(dynamic, 1) nowait
        for (int64_t piece = 0; piece < blocks * m->heads; piece++)
            look_chunk(m, s, chunk, piece % m->heads, 32 * (blocks - 1 - piece / m->heads), scores);
    }
}

static void before_attention(const Model *m, const Step *s, int64_t layer)
{
    const Layer *w = m->layer + layer;
    const int64_t outputs = (m->heads + 2 * m->kv_heads) * m->dim;
    norms(m, s, w->norm_in);
    product(WRITE, s->normed, width(m->hidden), s->rows, m->hidden, outputs, w->qkv, 0, w->qkv_bias, s->qkv, outputs);
    place_keys(m, s, layer);
    if (s->watched_count) keep_queries(m, s, layer);
}

static void after_attention(const Model *m, const Step *s, int64_t layer)
{
    const Layer *w = m->layer + layer;
    const int64_t attended = m->heads * m->dim;
    product(ADD, s->attended, width(attended), s->rows, attended, m->hidden, w->o, 0, 0, s->x, m->hidden);
    norms(m, s, w->norm_mid);
    product(GATE, s->normed, width(m->hidden), s->rows, m->hidden, m->inner, w->gate, w->up, 0, s->gated, width(m->inner));
    product(ADD, s->gated, width(m->inner), s->rows, m->inner, m->hidden, w->down, 0, 0, s->x, m->hidden);
}

/* All layers. */
void advance(const Model *m, const Step *s)
{
#pragma omp parallel
    {
        begin_products();
        for (int64_t layer = 0; layer < m->layers; layer++) {
            before_attention(m, s, layer);
            look_singles(m, s, layer, THREAD);
            if (s->chunk_count) look_chunks(m, s, layer, THREAD, THREADS);
#pragma omp barrier
            after_attention(m, s, layer);
        }
        end_products();
    }
}

/* Logits of some rows: (count, vocabulary). */
void score(const Model *m, const Step *s, const int64_t *wanted, int64_t count, float *logits)
{
#pragma omp parallel
    {
        begin_products();
#pragma omp for schedule(static)
        for (int64_t i = 0; i < count; i++)
            norm(s->x + wanted[i] * m->hidden, m->norm_out, m->hidden, m->eps, s->normed + i * width(m->hidden));
        product(SCORES, s->normed, width(m->hidden), count, m->hidden, m->vocabulary, m->head, 0, 0, logits, m->vocabulary);
        end_products();
    }
}
