/* scale: see scale.h. Down the columns first, which leaves fewer rows to the pass across.
 *
 * How it is fast: ROWS rows of the output go together. On their way down a block of columns at a time is looked at,
 * whose source stays in the nearest cache, as many vectors wide as there are registers for sums; what a tap costs
 * besides is shared by them. Then the rows are turned to lie side by side, [column][row], so that the pass across, and
 * the colours, are sums of whole vectors whatever its taps are; U and V, which have the same, lie in turn and go
 * together. They are turned back as bytes, of which a vector holds the most.
 *
 * Limits: 8 bit a channel; bicubic only.
 * Traps: antialiasing means that the kernel widens with the scale when shrinking (as in PIL and in torchvision with
 * antialias=True), with a = -0.5, not the -0.75 of the plain bicubic of torch; weights at the border are cut and
 * normalised anew. Sums stay in fp32 between the two passes, where PIL rounds to 8 bit. At whole scales the kernel's
 * zeros fall on pixels, a quarter of them at 3: those are no taps. Products and sums are not fused, nor in another
 * order on other machines: bytes are the same on all.
 */
#include "scale.h"
#include "video.h"
#include <math.h>
#include <string.h>
#ifdef __AVX2__
#include <immintrin.h>
#endif

enum { ROWS = 16 }; /* that go together: a vector of bytes */
typedef uint8_t bytes __attribute__((vector_size(ROWS)));

/* A vector of the machine's, and what the compiler does not find by itself:
 * - first_halves, second_halves: of each four of a and of b, element by element in turn;
 * - load_fours: LANES / 4 fours, `apart` from each other, side by side;
 * - convert_row: COLUMNS bytes to floats;
 * - to_bytes: ROWS floats without their fractions, kept to 0..255. */
#ifdef __AVX2__
enum { LANES = 8, BLOCK = 6, COLUMNS = BLOCK * LANES }; /* vectors, and columns, that come down together */
typedef __m256 floats;

static inline floats first_halves(floats a, floats b) {
    return _mm256_unpacklo_ps(a, b);
}

static inline floats second_halves(floats a, floats b) {
    return _mm256_unpackhi_ps(a, b);
}

static inline floats load_fours(const float *in, int64_t apart) {
    return _mm256_insertf128_ps(_mm256_castps128_ps256(_mm_load_ps(in)), _mm_load_ps(in + apart), 1);
}

static inline void convert_row(const uint8_t *in, float *out) {
    for (int k = 0; k < COLUMNS; k += LANES)
        _mm256_store_ps(out + k, _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(_mm_loadl_epi64((const void *)(in + k)))));
}

static inline void to_bytes(const floats *in, uint8_t *out) {
    __m256i v = _mm256_packs_epi32(_mm256_cvttps_epi32(in[0]), _mm256_cvttps_epi32(in[1]));
    v = _mm256_permute4x64_epi64(v, 0xd8); /* packs works on halves */
    _mm_store_si128((void *)out, _mm_packus_epi16(_mm256_castsi256_si128(v), _mm256_extracti128_si256(v, 1)));
}
#else
enum { LANES = 4, BLOCK = 8, COLUMNS = BLOCK * LANES };
typedef float floats __attribute__((vector_size(LANES * sizeof(float)), may_alias));
typedef int32_t ints __attribute__((vector_size(LANES * sizeof(int32_t))));

static inline floats first_halves(floats a, floats b) {
    return __builtin_shuffle(a, b, (ints){0, 4, 1, 5});
}

static inline floats second_halves(floats a, floats b) {
    return __builtin_shuffle(a, b, (ints){2, 6, 3, 7});
}

static inline floats load_fours(const float *in, int64_t apart) {
    (void)apart;
    return *(const floats *)in;
}

static inline void convert_row(const uint8_t *restrict in, float *restrict out) {
    for (int k = 0; k < COLUMNS; k++) out[k] = in[k];
}

static inline void to_bytes(const floats *restrict in, uint8_t *restrict out) {
    for (int k = 0; k < ROWS; k++) {
        const int32_t v = (int32_t)((const float *)in)[k];
        out[k] = (uint8_t)(v < 0 ? 0 : v > 255 ? 255 : v);
    }
}
#endif
enum { VECTORS = ROWS / LANES };

/* Sums are arrays of vectors, which are registers only where all loops over them are unrolled. */
#define EACH _Pragma("GCC unroll 16") for

/* A source position that an output position takes, and its weight. */
typedef struct tap {
    int64_t at;
    float weight;
} tap;

/* All that one output position takes, in order. */
typedef struct taps {
    tap *tap;
    int64_t count;
} taps;

/* The rows of the source that ROWS rows of the output take. */
typedef struct group {
    int64_t first, count;
} group;

typedef struct plane {
    int64_t first, w; /* the columns that are looked at */
    int channels;     /* bytes a column */
    int apart;        /* floats from one byte's rows to the next one's */
    taps *across;     /* in floats of wide */
    taps *down;       /* in floats of the block, from the group's first row */
    group *group;     /* one for each ROWS rows */
    float *wide;      /* (w, channels, ROWS), padded: ROWS rows, as wide as the source */
} plane;

struct ma_scaler {
    ma_scale_sizes size;
    int planes;
    plane plane[3];      /* V has U's taps, and its rows behind each column's of U */
    floats matrix[3][4]; /* of YUV, with what rounds */
    float *wide;         /* of all planes */
    float *block;        /* (source rows of a group, COLUMNS) */
    float *down;         /* (ROWS, COLUMNS): the block at the new height */
    uint8_t *pixels;     /* (ow, 3, padded; ROWS): rows of the output */
};

/* ---- taps */

static double cubic(double x) {
    const double a = -0.5;
    x = fabs(x);
    if (x < 1) return ((a + 2) * x - (a + 3)) * x * x + 1;
    if (x < 2) return ((x - 5) * x + 8) * x * a - 4 * a;
    return 0;
}

/* The taps from n positions to m, of a source that begins at position `first` and has a sample for each 2^shift: what
 * its positions weigh together. They count from `origin`, by `step`. One allocation holds all. NULL: out of memory. */
static taps *make_taps(int64_t first, int64_t n, int64_t m, int shift, int64_t origin, int64_t step) {
    double scale = (double)n / (double)m, wide = scale > 1 ? scale : 1;
    size_t most = (size_t)ceil(4 * wide) + 2;
    taps *t = ma_alloc((size_t)m, sizeof *t + most * sizeof(tap));
    for (int64_t i = 0; t && i < m; i++) {
        double centre = ((double)i + 0.5) * scale, sum = 0;
        int64_t from = (int64_t)(centre - 2 * wide + 0.5), to = (int64_t)(centre + 2 * wide + 0.5);
        if (from < 0) from = 0;
        if (to > n) to = n;
        tap *all = (tap *)(t + m) + (size_t)i * most, *next = all;
        for (int64_t j = from; j < to; j++) sum += cubic(((double)j + 0.5 - centre) / wide);
        for (int64_t j = from; j < to;) {
            const int64_t at = (first + j) >> shift;
            float weight = 0;
            for (; j < to && (first + j) >> shift == at; j++)
                weight += (float)(cubic(((double)j + 0.5 - centre) / wide) / sum);
            if (weight != 0) *next++ = (tap){(at - origin) * step, weight};
        }
        t[i] = (taps){all, next - all};
    }
    return t;
}

/* The rows of the source that each ROWS rows take, from whose first their taps count from now on, in floats of a block.
 * Returns the most rows of a group. */
static int64_t make_groups(group *g, const taps *t, int64_t oh) {
    int64_t most = 0;
    for (int64_t y = 0; y < oh; y += ROWS, t += ROWS, g++) {
        const int64_t n = y + ROWS < oh ? ROWS : oh - y;
        int64_t last = g->first = t->tap->at;
        for (int64_t k = 0; k < n; k++) {
            const int64_t from = t[k].tap->at, to = t[k].tap[t[k].count - 1].at;
            if (from < g->first) g->first = from;
            if (to > last) last = to;
        }
        g->count = last + 1 - g->first;
        if (g->count > most) most = g->count;
        for (int64_t k = 0; k < n; k++)
            for (int64_t i = 0; i < t[k].count; i++) t[k].tap[i].at = (t[k].tap[i].at - g->first) * COLUMNS;
    }
    return most;
}

/* ---- turning */

/* LANES rows of COLUMNS floats become columns `apart` from each other: four columns at a time, whose rows y, y + 4, …
 * are turned side by side, as vectors shuffle within fours at the least cost. */
static inline void turn(const float *from, float *to, int64_t apart) {
    for (int x = 0; x < COLUMNS; x += 4, to += 4 * apart) {
        floats v[4];
        EACH (int k = 0; k < 4; k++) v[k] = load_fours(from + k * COLUMNS + x, 4 * COLUMNS);
        const floats a = first_halves(v[0], v[2]), b = first_halves(v[1], v[3]);
        const floats c = second_halves(v[0], v[2]), d = second_halves(v[1], v[3]);
        *(floats *)to = first_halves(a, b);
        *(floats *)(to + apart) = second_halves(a, b);
        *(floats *)(to + 2 * apart) = first_halves(c, d);
        *(floats *)(to + 3 * apart) = second_halves(c, d);
    }
}

/* Rows k and k + 8 of 16, byte by byte in turn, become rows 2k and 2k + 1; done four times, rows are columns. */
static inline void zip(const bytes *in, bytes *out) {
    const bytes low = {0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23}, high = low + 8;
    EACH (int k = 0; k < 8; k++) {
        out[2 * k] = __builtin_shuffle(in[k], in[k + 8], low);
        out[2 * k + 1] = __builtin_shuffle(in[k], in[k + 8], high);
    }
}

static inline void turn_bytes(const uint8_t *from, uint8_t *to, int64_t apart) {
    bytes a[ROWS], b[ROWS];
    EACH (int k = 0; k < ROWS; k++) memcpy(a + k, from + k * ROWS, ROWS);
    zip(a, b);
    zip(b, a);
    zip(a, b);
    zip(b, a);
    EACH (int k = 0; k < ROWS; k++) memcpy(to + k * apart, a + k, ROWS);
}

/* ---- down the columns */

/* COLUMNS of the n columns that are left, or all, of so many of the source's rows: each is needed for a few rows of the
 * output. */
static void convert_block(const uint8_t *in, int64_t stride, int64_t count, int64_t n, float *out) {
    uint8_t part[COLUMNS] = {0};
    for (int64_t y = 0; y < count; y++, in += stride, out += COLUMNS)
        convert_row(n >= COLUMNS ? in : memcpy(part, in, (size_t)n), out);
}

/* COLUMNS of one output row. */
static inline void sum_block(const float *block, const taps *t, float *out) {
    floats sum[BLOCK] = {0};
    for (const tap *k = t->tap, *end = k + t->count; k < end; k++) {
        const floats *in = (const floats *)(block + k->at), weight = (floats){0} + k->weight;
        EACH (int i = 0; i < BLOCK; i++) sum[i] += weight * in[i];
    }
    EACH (int i = 0; i < BLOCK; i++) ((floats *)out)[i] = sum[i];
}

/* Output rows y, …, y + n - 1 of the plane, as wide as the source. Meanwhile, a few at a time, the rows are sent for
 * that the next ones take besides: a line of the cache from each row is no order that the machine foresees. */
static void fill_wide(const ma_scaler *s, const plane *p, const uint8_t *in, int64_t stride, int64_t y, int64_t n) {
    const int64_t w = p->w * p->channels;
    const group *g = p->group + y / ROWS;
    const int64_t next = g->first + g->count, more = y + ROWS < s->size.oh ? g[1].first + g[1].count - next : 0;
    in += p->first * p->channels;
    for (int64_t done = 0; done < w; done += COLUMNS) {
        const int64_t x = done + COLUMNS <= w || w < COLUMNS ? done : w - COLUMNS; /* the last one whole, too */
        const int64_t end = (x + COLUMNS < w ? x + COLUMNS : w) - 1;
        convert_block(in + g->first * stride + x, stride, g->count, w - x, s->block);
        for (int64_t k = 0; k < n; k++) {
            for (int64_t i = k; i < more; i += n) __builtin_prefetch(in + (next + i) * stride + end, 0, 2);
            sum_block(s->block, p->down + y + k, s->down + k * COLUMNS);
        }
        for (int k = 0; k < ROWS; k += LANES) turn(s->down + k * COLUMNS, p->wide + x * p->apart + k, p->apart);
    }
}

/* ---- across, and out */

/* One output column of so many channels, from `start`. */
static inline void sum_across(const plane *p, int64_t x, const int channels, float start, floats *out) {
    floats sum[3 * VECTORS];
    EACH (int i = 0; i < channels * VECTORS; i++) sum[i] = (floats){0} + start;
    for (const tap *k = p->across[x].tap, *end = k + p->across[x].count; k < end; k++) {
        const floats *in = (const floats *)(p->wide + k->at), weight = (floats){0} + k->weight;
        EACH (int i = 0; i < channels * VECTORS; i++) sum[i] += weight * in[i];
    }
    EACH (int i = 0; i < channels * VECTORS; i++) out[i] = sum[i];
}

static void fill_from_rgb(const ma_scaler *s) {
    for (int64_t x = 0; x < s->size.ow; x++) {
        floats sum[3 * VECTORS];
        sum_across(s->plane, x, 3, 0.5f, sum);
        for (int c = 0; c < 3; c++) to_bytes(sum + c * VECTORS, s->pixels + (3 * x + c) * ROWS);
    }
}

static void fill_from_yuv(const ma_scaler *s) {
    for (int64_t x = 0; x < s->size.ow; x++) {
        floats in[3 * VECTORS], sum[VECTORS];
        sum_across(s->plane, x, 1, 0, in);
        sum_across(s->plane + 1, x, 2, 0, in + VECTORS);
        for (int c = 0; c < 3; c++) {
            const floats *m = s->matrix[c];
            EACH (int i = 0; i < VECTORS; i++)
                sum[i] = m[3] + m[0] * in[i] + m[1] * in[VECTORS + i] + m[2] * in[2 * VECTORS + i];
            to_bytes(sum, s->pixels + (3 * x + c) * ROWS);
        }
    }
}

/* n rows of the output. */
static void write_rows(const ma_scaler *s, int64_t n, uint8_t *rgb, int64_t stride) {
    const int64_t w = 3 * s->size.ow;
    uint8_t part[ROWS * ROWS];
    for (int64_t x = 0; x < w; x += ROWS) {
        const uint8_t *from = s->pixels + x * ROWS;
        if (n == ROWS && x + ROWS <= w) {
            turn_bytes(from, rgb + x, stride);
            continue;
        }
        turn_bytes(from, part, ROWS);
        for (int64_t k = 0; k < n; k++)
            memcpy(rgb + k * stride + x, part + k * ROWS, (size_t)(x + ROWS <= w ? ROWS : w - x));
    }
}

void ma_scaler_run(ma_scaler *s, const uint8_t *const *planes, const int *strides, uint8_t *rgb, int64_t stride) {
    int64_t oh = s->size.oh;
    for (int64_t y = 0; y < oh; y += ROWS, rgb += ROWS * stride) {
        int64_t n = y + ROWS < oh ? ROWS : oh - y;
        for (int k = 0; k < s->planes; k++) fill_wide(s, &s->plane[k], planes[k], strides[k], y, n);
        (s->planes == 3 ? fill_from_yuv : fill_from_rgb)(s);
        write_rows(s, n, rgb, stride);
    }
}

/* ---- making one */

/* A plane, of `together` that lie in turn. most: of its groups' rows and of those before. */
static bool make_plane(plane *p, const ma_scale_sizes *s, int down, int across, int channels, int together,
                       int64_t *most) {
    int64_t first = s->x >> across;
    *p = (plane){.first = first, .w = ((s->x + s->w - 1) >> across) - first + 1, .channels = channels};
    p->apart = together * ROWS;
    p->down = make_taps(s->y, s->h, s->oh, down, 0, 1);
    p->across = make_taps(s->x, s->w, s->ow, across, first, channels * p->apart);
    p->group = ma_alloc((size_t)(s->oh + ROWS - 1) / ROWS, sizeof *p->group);
    if (!p->down || !p->across || !p->group) return false;
    const int64_t rows = make_groups(p->group, p->down, s->oh);
    if (rows > *most) *most = rows;
    return true;
}

/* Floats of a plane's wide: what is behind the last column, to a whole block, is computed and not looked at. */
static int64_t wide_size(const plane *p) {
    return (p->w * p->channels + COLUMNS) * p->apart;
}

ma_scaler *ma_scaler_new(const ma_scale_sizes *size, const ma_scale_yuv *yuv) {
    ma_scaler *s = ma_alloc(1, sizeof *s);
    if (!s) return NULL;
    plane *p = s->plane;
    int64_t most = 0;
    s->size = *size;
    s->planes = yuv ? 3 : 1;
    bool good = make_plane(p, size, 0, 0, yuv ? 1 : 3, 1, &most);
    if (yuv) good = good && make_plane(p + 1, size, yuv->down, yuv->across, 1, 2, &most);
    s->wide = good ? ma_alloc((size_t)(wide_size(p) + (yuv ? wide_size(p + 1) : 0)), sizeof *s->wide) : NULL;
    s->block = good ? ma_alloc((size_t)most, COLUMNS * sizeof *s->block) : NULL;
    s->down = ma_alloc(ROWS, COLUMNS * sizeof *s->down);
    s->pixels = ma_alloc((size_t)(3 * size->ow + ROWS), ROWS);
    if (!s->wide || !s->block || !s->down || !s->pixels) {
        ma_scaler_free(s);
        return NULL;
    }
    p[0].wide = s->wide;
    if (!yuv) return s;
    p[1].wide = p[0].wide + wide_size(p);
    p[2] = p[1];
    p[2].wide += ROWS;
    for (int c = 0; c < 3; c++)
        for (int k = 0; k < 4; k++) s->matrix[c][k] = (floats){0} + (yuv->matrix[c][k] + (k == 3 ? 0.5f : 0));
    return s;
}

void ma_scaler_free(ma_scaler *s) {
    if (!s) return;
    for (int k = 0; k < 2; k++) { /* the third has what the second has */
        ma_release(s->plane[k].down);
        ma_release(s->plane[k].across);
        ma_release(s->plane[k].group);
    }
    ma_release(s->wide);
    ma_release(s->block);
    ma_release(s->down);
    ma_release(s->pixels);
    ma_release(s);
}

int ma_image_resize(const uint8_t *in, int64_t h, int64_t w, uint8_t *out, int64_t oh, int64_t ow) {
    ma_scaler *s = ma_scaler_new(&(ma_scale_sizes){0, 0, h, w, oh, ow}, NULL);
    if (!s) return -1;
    ma_scaler_run(s, (const uint8_t *const[]){in}, (int[]){(int)(3 * w)}, out, 3 * ow);
    ma_scaler_free(s);
    return 0;
}
