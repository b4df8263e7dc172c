/* One layer of a CLIP vision tower over the patches of several pictures. */
#include "tiles.h"

typedef struct {
    int64_t hidden, inner, heads;
    float eps, scale;
    const bf16 *qkv, *o, *up, *down; /* packed */
    const float *qkv_bias, *o_bias, *up_bias, *down_bias;
    const float *norm_in, *norm_in_bias, *norm_mid, *norm_mid_bias;
} TowerLayer;

typedef struct {
    int64_t pictures, patches;
    const bf16 *from; /* (pictures, patches, hidden) */
    bf16 *to;         /* the same */
    float *x;         /* (rows, hidden), rows = pictures * patches */
    bf16 *normed;     /* (rows + 32, width(hidden)) */
    bf16 *qkv;        /* (rows + 32, 3 * hidden) */
    bf16 *attended;   /* (rows + 32, width(hidden)) */
    bf16 *gated;      /* (rows + 32, width(inner)) */
    bf16 *packed;     /* (2, pictures, heads, patches rounded up to 32, hidden / heads) */
    float *scores;    /* (threads, scores_per_thread(patches)) */
} Look;

static void layer_norm(const float *x, const float *weight, const float *bias, int64_t hidden, float eps, bf16 *to)
{
    __m512 sum = _mm512_setzero_ps(), squares = sum;
    for (int64_t i = 0; i < hidden; i += 16) sum = _mm512_add_ps(sum, _mm512_loadu_ps(x + i));
    const __m512 mean = _mm512_set1_ps(_mm512_reduce_add_ps(sum) / hidden);
    for (int64_t i = 0; i < hidden; i += 16) {
        const __m512 off = _mm512_sub_ps(_mm512_loadu_ps(x + i), mean);
        squares = _mm512_fmadd_ps(off, off, squares);
    }
    const __m512 by = _mm512_set1_ps(1.0f / sqrtf(_mm512_reduce_add_ps(squares) / hidden + eps));
    for (int64_t i = 0; i < hidden; i += 16) {
        const __m512 unit = _mm512_mul_ps(_mm512_sub_ps(_mm512_loadu_ps(x + i), mean), by);
        to_bf16(to + i, _mm512_fmadd_ps(unit, _mm512_loadu_ps(weight + i), _mm512_loadu_ps(bias + i)));
    }
}

static void attend(const TowerLayer *w, const Look *l, int thread)
{
    const int64_t dim = w->hidden / w->heads, ld = 3 * w->hidden, ldo = width(w->hidden), rows = l->patches;
    const int64_t size = whole_tiles(rows) * dim, all = l->pictures * w->heads, blocks = (rows + 31) / 32;
    float *scores = l->scores + thread * scores_of_thread(rows);
#pragma omp for schedule(static)
    for (int64_t piece = 0; piece < all; piece++) {
        const bf16 *keys = l->qkv + piece / w->heads * rows * ld + w->hidden + piece % w->heads * dim;
        pack_head(keys, keys + w->hidden, ld, 0, rows, dim, l->packed + piece * size, l->packed + (all + piece) * size);
    }
#pragma omp for schedule(dynamic, 1)
    for (int64_t piece = 0; piece < all * blocks; piece++) {
        const int64_t head = piece / blocks, begin = 32 * (piece % blocks);
        const int64_t row = head / w->heads * rows + begin, column = head % w->heads * dim;
        look_block(l->qkv + row * ld + column, ld, rows - begin < 32 ? rows - begin : 32, l->packed + head * size,
                   l->packed + (all + head) * size, whole_tiles(rows), dim, w->scale, rows - 1, 0, 0, scores, room(rows),
                   l->attended + row * ldo + column, ldo);
    }
}

void see(const TowerLayer *w, const Look *l)
{
    const int64_t rows = l->pictures * l->patches, hidden = w->hidden, ld = width(hidden);
#pragma omp parallel
    {
        begin_products();
#pragma omp for schedule(static)
        for (int64_t row = 0; row < rows; row++) {
            for (int64_t i = 0; i < hidden; i += 16)
                _mm512_storeu_ps(l->x + row * hidden + i, to_float(l->from + row * hidden + i));
            layer_norm(l->x + row * hidden, w->norm_in, w->norm_in_bias, hidden, w->eps, l->normed + row * ld);
        }
        product(WRITE, l->normed, ld, rows, hidden, 3 * hidden, w->qkv, 0, w->qkv_bias, l->qkv, 3 * hidden);
        attend(w, l, THREAD);
        product(ADD, l->attended, ld, rows, hidden, hidden, w->o, 0, w->o_bias, l->x, hidden);
#pragma omp for schedule(static)
        for (int64_t row = 0; row < rows; row++)
            layer_norm(l->x + row * hidden, w->norm_mid, w->norm_mid_bias, hidden, w->eps, l->normed + row * ld);
        product(QUICK_GELU, l->normed, ld, rows, hidden, w->inner, w->up, 0, w->up_bias, l->gated, width(w->inner));
        product(ADD, l->gated, width(w->inner), rows, w->inner, hidden, w->down, 0, w->down_bias, l->x, hidden);
#pragma omp for schedule(static)
        for (int64_t row = 0; row < rows; row++)
            for (int64_t i = 0; i < hidden; i += 16)
                to_bf16(l->to + row * hidden + i, _mm512_loadu_ps(l->x + row * hidden + i));
        end_products();
    }
}
