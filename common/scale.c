/* scale: see scale.h. Down the columns first, which leaves fewer rows to the pass across.
 *
 * How it is fast: ROWS rows of the output go together. On their way down a block of columns at a time is looked at,
 * whose source stays in the nearest cache; then they are turned to lie side by side, [column][row], so that the pass
 * across, and the colours, are sums of whole vectors whatever its taps are; and are turned back for the bytes.
 *
 * Limits: 8 bit a channel; bicubic only.
 * Traps: antialiasing means that the kernel widens with the scale when shrinking (as in PIL and in torchvision with
 * antialias=True), with a = -0.5, not the -0.75 of the plain bicubic of torch; weights at the border are cut and
 * normalised anew. Sums stay in fp32 between the two passes, where PIL rounds to 8 bit. At whole scales the kernel's
 * zeros fall on pixels, a quarter of them at 3: those are no taps.
 */
#include "scale.h"
#include "video.h"
#include <math.h>
#include <string.h>

/* Rows that go together: a vector of the machine's. */
#if defined __AVX512F__
enum { ROWS = 16 };
#elif defined __AVX__
enum { ROWS = 8 };
#else
enum { ROWS = 4 };
#endif
enum { BLOCK = 4, COLUMNS = BLOCK * ROWS }; /* vectors, and columns, that come down together */
typedef float rows __attribute__((vector_size(ROWS * sizeof(float))));
typedef uint32_t words __attribute__((vector_size(ROWS * sizeof(uint32_t))));
typedef int32_t ints __attribute__((vector_size(ROWS * sizeof(int32_t))));
typedef float fours __attribute__((vector_size(4 * sizeof(float))));

/* A source position that an output position takes, and its weight. */
typedef struct tap {
    int64_t at;
    float weight;
} tap;

/* All that one output position takes, in order. */
typedef struct taps {
    const tap *tap;
    int64_t count;
} taps;

typedef struct plane {
    int64_t first, w; /* the columns that are looked at */
    int channels;     /* bytes a column */
    taps *across;     /* from the plane's first column, in vectors of wide */
    taps *down;       /* from the picture's first row */
    rows *wide;       /* (w, channels, padded): ROWS rows, as wide as the source */
    rows *narrow;     /* (ow, channels): the same, as wide as the output */
} plane;

struct ma_scaler {
    ma_scale_sizes size;
    ma_scale_yuv yuv;
    int planes;
    plane plane[3];
    rows *block;   /* (source rows that ROWS rows of the output take, BLOCK) */
    rows *colours; /* (ow, 3, padded): of YUV; NULL for RGB */
    float *lines;  /* (ROWS, ow, 3, padded): rows of the output */
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

/* ---- rows beside each other */

/* The first halves of a and b, or the second ones, element by element in turn: an instruction each. */
static inline fours first_halves(fours a, fours b) {
    return (fours){a[0], b[0], a[1], b[1]};
}

static inline fours second_halves(fours a, fours b) {
    return (fours){a[2], b[2], a[3], b[3]};
}

/* Transposes ROWS by ROWS floats, from rows `from_apart` floats apart to rows `to_apart` apart. */
static inline void turn(const float *from, int64_t from_apart, float *to, int64_t to_apart) {
    for (int y = 0; y < ROWS; y += 4)
        for (int x = 0; x < ROWS; x += 4) {
            fours v[4];
            for (int k = 0; k < 4; k++) memcpy(v + k, from + (y + k) * from_apart + x, sizeof *v);
            const fours a = first_halves(v[0], v[2]), b = first_halves(v[1], v[3]);
            const fours c = second_halves(v[0], v[2]), d = second_halves(v[1], v[3]);
            v[0] = first_halves(a, b);
            v[1] = second_halves(a, b);
            v[2] = first_halves(c, d);
            v[3] = second_halves(c, d);
            for (int k = 0; k < 4; k++) memcpy(to + (x + k) * to_apart + y, v + k, sizeof *v);
        }
}

/* Elements to whole blocks of columns: what is behind the last is computed, and not looked at. */
static int64_t padded(int64_t n) {
    return (n + COLUMNS - 1) / COLUMNS * COLUMNS;
}

/* ---- down the columns */

/* COLUMNS bytes as floats, those whose places are the same modulo BLOCK together: bytes of words need no shuffling. */
static inline void convert_row(const uint8_t *in, rows *out) {
    words v;
    memcpy(&v, in, sizeof v);
    for (int k = 0; k < BLOCK; k++) out[k] = __builtin_convertvector((ints)(v >> 8 * k & 255), rows);
}

/* COLUMNS of the n columns that are left, or all, of so many of the source's rows: each is needed for a few rows of the
 * output. The next columns are sent for meanwhile: a line of the cache from each row is no order that the machine
 * foresees. */
static void convert_block(const uint8_t *in, int64_t stride, int64_t count, int64_t n, rows *out) {
    const int64_t next = (n < 2 * COLUMNS ? n : 2 * COLUMNS) - 1;
    uint8_t part[COLUMNS] = {0};
    for (int64_t y = 0; y < count; y++, in += stride, out += BLOCK) {
        __builtin_prefetch(in + next);
        if (n >= COLUMNS)
            convert_row(in, out);
        else
            convert_row(memcpy(part, in, (size_t)n), out);
    }
}

/* BLOCK vectors of one output row. */
static void sum_block(const rows *block, const taps *t, int64_t first, rows *out) {
    rows a = {0}, b = {0}, c = {0}, d = {0};
    for (const tap *k = t->tap, *end = k + t->count; k < end; k++) {
        const rows *in = block + (k->at - first) * BLOCK;
        a += k->weight * in[0];
        b += k->weight * in[1];
        c += k->weight * in[2];
        d += k->weight * in[3];
    }
    out[0] = a;
    out[1] = b;
    out[2] = c;
    out[3] = d;
}

/* How many of the source's rows n rows of the output take, and the first. */
static int64_t span(const taps *t, int64_t n, int64_t *first) {
    int64_t last = *first = t->tap->at;
    for (int64_t k = 0; k < n; k++) {
        const int64_t from = t[k].tap->at, to = t[k].tap[t[k].count - 1].at;
        if (from < *first) *first = from;
        if (to > last) last = to;
    }
    return last + 1 - *first;
}

/* Output rows y, …, y + n - 1 of the plane, as wide as the source. */
static void fill_wide(const ma_scaler *s, const plane *p, const uint8_t *in, int64_t stride, int64_t y, int64_t n) {
    const taps *t = p->down + y;
    const int64_t w = p->w * p->channels;
    int64_t first, count = span(t, n, &first);
    rows down[ROWS * BLOCK] = {0};
    in += first * stride + p->first * p->channels;
    for (int64_t next = 0; next < w; next += COLUMNS) {
        const int64_t x = next + COLUMNS <= w || w < COLUMNS ? next : w - COLUMNS; /* the last one whole, too */
        convert_block(in + x, stride, count, w - x, s->block);
        for (int64_t k = 0; k < n; k++) sum_block(s->block, t + k, first, down + k * BLOCK);
        for (int k = 0; k < BLOCK; k++)
            turn((const float *)(down + k), COLUMNS, (float *)(p->wide + x + k), BLOCK * ROWS);
    }
}

/* ---- across, and out */

static void fill_narrow(const ma_scaler *s, const plane *p) {
    for (int64_t x = 0; x < s->size.ow; x++) {
        const taps *t = p->across + x;
        for (int c = 0; c < p->channels; c++) {
            rows sum = {0};
            for (const tap *k = t->tap, *end = k + t->count; k < end; k++) sum += k->weight * p->wide[k->at + c];
            p->narrow[x * p->channels + c] = sum;
        }
    }
}

static void fill_colours(const ma_scaler *s) {
    const plane *p = s->plane;
    for (int64_t x = 0; x < s->size.ow; x++)
        for (int c = 0; c < 3; c++) {
            const float *m = s->yuv.matrix[c];
            s->colours[3 * x + c] = m[0] * p[0].narrow[x] + m[1] * p[1].narrow[x] + m[2] * p[2].narrow[x] + m[3];
        }
}

/* Rounded, and kept to 0..255. */
static void to_bytes(const float *restrict in, uint8_t *restrict out, int64_t n) {
    for (int64_t i = 0; i < n; i++) {
        int32_t v = (int32_t)(in[i] + 0.5f);
        v = v < 0 ? 0 : v;
        out[i] = (uint8_t)(v > 255 ? 255 : v);
    }
}

/* n rows of the output. */
static void write_rows(const ma_scaler *s, int64_t n, uint8_t *rgb, int64_t stride) {
    const int64_t w = 3 * s->size.ow, apart = padded(w);
    const rows *from = s->planes == 3 ? s->colours : s->plane->narrow;
    for (int64_t x = 0; x < w; x += ROWS) turn((const float *)(from + x), ROWS, s->lines + x, apart);
    for (int64_t k = 0; k < n; k++) to_bytes(s->lines + k * apart, rgb + k * stride, w);
}

void ma_scaler_run(ma_scaler *s, const uint8_t *const *planes, const int *strides, uint8_t *rgb, int64_t stride) {
    int64_t oh = s->size.oh;
    for (int64_t y = 0; y < oh; y += ROWS, rgb += ROWS * stride) {
        int64_t n = y + ROWS < oh ? ROWS : oh - y;
        for (int k = 0; k < s->planes; k++) {
            fill_wide(s, &s->plane[k], planes[k], strides[k], y, n);
            fill_narrow(s, &s->plane[k]);
        }
        if (s->planes == 3) fill_colours(s);
        write_rows(s, n, rgb, stride);
    }
}

/* ---- making one */

static bool make_plane(plane *p, const ma_scale_sizes *s, int down, int across, int channels) {
    int64_t first = s->x >> across;
    *p = (plane){.first = first, .w = ((s->x + s->w - 1) >> across) - first + 1, .channels = channels};
    p->down = make_taps(s->y, s->h, s->oh, down, 0, 1);
    p->across = make_taps(s->x, s->w, s->ow, across, first, channels);
    p->wide = ma_alloc((size_t)padded(p->w * channels), sizeof *p->wide);
    p->narrow = ma_alloc((size_t)padded(s->ow * channels), sizeof *p->narrow);
    return p->down && p->across && p->wide && p->narrow;
}

/* Source rows that ROWS rows of the output take, at most. */
static int64_t most_rows(const plane *p, int64_t oh) {
    int64_t most = 0, first;
    for (int64_t y = 0; y < oh; y += ROWS) {
        int64_t count = span(p->down + y, y + ROWS < oh ? ROWS : oh - y, &first);
        if (count > most) most = count;
    }
    return most;
}

ma_scaler *ma_scaler_new(const ma_scale_sizes *size, const ma_scale_yuv *yuv) {
    ma_scaler *s = ma_alloc(1, sizeof *s);
    if (!s) return NULL;
    s->size = *size;
    s->planes = yuv ? 3 : 1;
    if (yuv) s->yuv = *yuv;
    bool good = true;
    for (int k = 0; k < s->planes && good; k++)
        good = make_plane(&s->plane[k], size, k ? s->yuv.down : 0, k ? s->yuv.across : 0, yuv ? 1 : 3);
    s->block = good ? ma_alloc((size_t)most_rows(s->plane, size->oh), BLOCK * sizeof *s->block) : NULL;
    s->colours = yuv ? ma_alloc((size_t)padded(3 * size->ow), sizeof *s->colours) : NULL;
    s->lines = ma_alloc((size_t)padded(3 * size->ow), ROWS * sizeof *s->lines);
    if (s->block && s->lines && (s->colours || !yuv)) return s;
    ma_scaler_free(s);
    return NULL;
}

void ma_scaler_free(ma_scaler *s) {
    if (!s) return;
    for (int k = 0; k < s->planes; k++) {
        ma_release(s->plane[k].down);
        ma_release(s->plane[k].across);
        ma_release(s->plane[k].wide);
        ma_release(s->plane[k].narrow);
    }
    ma_release(s->block);
    ma_release(s->colours);
    ma_release(s->lines);
    ma_release(s);
}

int ma_image_resize(const uint8_t *in, int64_t h, int64_t w, uint8_t *out, int64_t oh, int64_t ow) {
    ma_scaler *s = ma_scaler_new(&(ma_scale_sizes){0, 0, h, w, oh, ow}, NULL);
    if (!s) return -1;
    ma_scaler_run(s, (const uint8_t *const[]){in}, (int[]){(int)(3 * w)}, out, 3 * ow);
    ma_scaler_free(s);
    return 0;
}
