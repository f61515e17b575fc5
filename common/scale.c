/* scale: see scale.h. Down the columns first, which leaves fewer rows to the pass across.
 *
 * How it is fast: ROWS rows of the output go together, and after the first pass lie side by side, [column][row], so
 * that the pass across, and the colours, are sums of whole vectors whatever its taps are.
 *
 * Limits: 8 bit a channel; bicubic only.
 * Traps: antialiasing means that the kernel widens with the scale when shrinking (as in PIL and in torchvision with
 * antialias=True), with a = -0.5, not the -0.75 of the plain bicubic of torch; weights at the border are cut and
 * normalised anew. Sums stay in fp32 between the two passes, where PIL rounds to 8 bit.
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
enum { GROUP = 4, BLOCK = 4 }; /* rows that are set beside each other at once; vectors that come down at once */
typedef float rows __attribute__((vector_size(ROWS * sizeof(float))));

/* What one output position takes: count source positions from `from` on, and their weights. */
typedef struct taps {
    int64_t from, count;
    float *weight;
} taps;

typedef struct plane {
    int64_t first, w; /* the columns that are looked at */
    int channels;     /* bytes a column */
    taps *across, *down;
    int64_t kept, have; /* rows in the ring, a power of two; the next to come */
    rows *ring;         /* (kept, w, channels, padded) */
    rows *wide;         /* (w, channels): ROWS rows, as wide as the source */
    rows *narrow;       /* (ow, channels): the same, as wide as the output */
} plane;

struct ma_scaler {
    ma_scale_sizes size;
    ma_scale_yuv yuv;
    int planes;
    plane plane[3];
    rows *group;    /* (GROUP, w, channels, padded, of the widest plane): rows that have come down */
    float *fours;   /* (w, channels, GROUP): the same, beside each other */
    rows *colours;  /* (ow, 3), of YUV */
    uint8_t *bytes; /* (ow, 3, ROWS) */
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
 * its positions weigh together. One allocation holds them and their weights. NULL: out of memory. */
static taps *make_taps(int64_t first, int64_t n, int64_t m, int shift) {
    double scale = (double)n / (double)m, wide = scale > 1 ? scale : 1;
    size_t most = (size_t)ceil(4 * wide) + 2;
    taps *t = ma_alloc((size_t)m, sizeof *t + most * sizeof(float));
    for (int64_t i = 0; t && i < m; i++) {
        double centre = ((double)i + 0.5) * scale, sum = 0;
        int64_t from = (int64_t)(centre - 2 * wide + 0.5), to = (int64_t)(centre + 2 * wide + 0.5);
        if (from < 0) from = 0;
        if (to > n) to = n;
        int64_t base = (first + from) >> shift;
        t[i] = (taps){base, ((first + to - 1) >> shift) - base + 1, (float *)(t + m) + (size_t)i * most};
        for (int64_t j = from; j < to; j++) sum += cubic(((double)j + 0.5 - centre) / wide);
        for (int64_t j = from; j < to; j++)
            t[i].weight[((first + j) >> shift) - base] += (float)(cubic(((double)j + 0.5 - centre) / wide) / sum);
    }
    return t;
}

/* ---- down the columns */

/* Whole blocks of columns: what is behind the last is computed, and not looked at. */
static int64_t padded(int64_t n) {
    return (n + BLOCK * ROWS - 1) / (BLOCK * ROWS) * BLOCK;
}

/* Has the source's rows from … to - 1 in the ring, as floats: each is needed for a few rows of the output. */
static void convert_rows(plane *p, const uint8_t *in, int64_t stride, int64_t from, int64_t to) {
    int64_t n = p->w * p->channels;
    if (p->have < from) p->have = from;
    for (; p->have < to; p->have++) {
        float *restrict out = (float *)(p->ring + (p->have & (p->kept - 1)) * padded(n));
        const uint8_t *row = in + p->have * stride + p->first * p->channels;
        for (int64_t i = 0; i < n; i++) out[i] = row[i];
    }
}

/* BLOCK vectors of one output row from those of the source's rows, `apart` from one to the next. */
static void sum_block(const plane *p, taps t, const rows *column, int64_t apart, rows *out) {
    const rows *in = column + (t.from & (p->kept - 1)) * apart, *end = column + p->kept * apart;
    rows a = {0}, b = {0}, c = {0}, d = {0};
    for (int64_t k = 0; k < t.count; k++) {
        const float w = t.weight[k];
        a += w * in[0];
        b += w * in[1];
        c += w * in[2];
        d += w * in[3];
        in += apart;
        if (in == end) in = column;
    }
    out[0] = a;
    out[1] = b;
    out[2] = c;
    out[3] = d;
}

/* Four rows of n floats, `apart` from one to the next: as n fours. */
static void interleave(const float *restrict in, int64_t apart, float *restrict out, int64_t n) {
    const float *b = in + apart, *c = b + apart, *d = c + apart;
    for (int64_t x = 0; x < n; x++) {
        out[4 * x] = in[x];
        out[4 * x + 1] = b[x];
        out[4 * x + 2] = c[x];
        out[4 * x + 3] = d[x];
    }
}

/* Output rows y, …, y + n - 1 of the plane, as wide as the source. */
static void fill_wide(const ma_scaler *s, plane *p, const uint8_t *in, int64_t stride, int64_t y, int64_t n) {
    int64_t w = p->w * p->channels, apart = padded(w);
    for (int64_t k = 0; k < n; k += GROUP) {
        const taps *t = p->down + y + k;
        int64_t many = n - k < GROUP ? n - k : GROUP;
        convert_rows(p, in, stride, t[0].from, t[many - 1].from + t[many - 1].count);
        for (int64_t x = 0; x < apart; x += BLOCK) /* all rows of a block: then it stays in the nearest cache */
            for (int64_t j = 0; j < many; j++) sum_block(p, t[j], p->ring + x, apart, s->group + j * apart + x);
        interleave((const float *)s->group, apart * ROWS, s->fours, w);
        float *out = (float *)p->wide + k;
        for (int64_t x = 0; x < w; x++) memcpy(out + x * ROWS, s->fours + x * GROUP, GROUP * sizeof *out);
    }
}

/* ---- across, and out */

static void fill_narrow(const ma_scaler *s, const plane *p) {
    for (int64_t x = 0; x < s->size.ow; x++) {
        const taps t = p->across[x];
        for (int c = 0; c < p->channels; c++) {
            const rows *in = p->wide + (t.from - p->first) * p->channels + c;
            rows sum = {0};
            for (int64_t k = 0; k < t.count; k++) sum += t.weight[k] * in[k * p->channels];
            p->narrow[x * p->channels + c] = sum;
        }
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

static void fill_bytes(const ma_scaler *s) {
    const plane *p = s->plane;
    for (int64_t x = 0; x < s->size.ow && s->planes == 3; x++)
        for (int c = 0; c < 3; c++) {
            const float *m = s->yuv.matrix[c];
            s->colours[3 * x + c] = m[0] * p[0].narrow[x] + m[1] * p[1].narrow[x] + m[2] * p[2].narrow[x] + m[3];
        }
    to_bytes((const float *)(s->planes == 3 ? s->colours : p[0].narrow), s->bytes, 3 * s->size.ow * ROWS);
}

void ma_scaler_run(ma_scaler *s, const uint8_t *const *planes, const int *strides, uint8_t *rgb, int64_t stride) {
    int64_t oh = s->size.oh, ow = s->size.ow;
    for (int64_t y = 0; y < oh; y += ROWS, rgb += ROWS * stride) {
        int64_t n = y + ROWS < oh ? ROWS : oh - y;
        for (int k = 0; k < s->planes; k++) {
            if (!y) s->plane[k].have = 0;
            fill_wide(s, &s->plane[k], planes[k], strides[k], y, n);
            fill_narrow(s, &s->plane[k]);
        }
        fill_bytes(s);
        const uint8_t *b = s->bytes;
        for (int64_t k = 0; k < n; k++)
            for (int64_t i = 0; i < 3 * ow; i++) rgb[k * stride + i] = b[i * ROWS + k];
    }
}

/* ---- making one */

static bool make_plane(plane *p, const ma_scale_sizes *s, int down, int across, int channels) {
    int64_t first = s->x >> across;
    *p = (plane){.first = first, .w = ((s->x + s->w - 1) >> across) - first + 1, .channels = channels};
    p->down = make_taps(s->y, s->h, s->oh, down);
    p->across = make_taps(s->x, s->w, s->ow, across);
    p->kept = 1;
    for (int64_t y = 0; p->down && y < s->oh; y++) {
        const taps *last = &p->down[y + GROUP < s->oh ? y + GROUP - 1 : s->oh - 1];
        while (p->kept < last->from + last->count - p->down[y].from) p->kept *= 2;
    }
    p->ring = ma_alloc((size_t)(p->kept * padded(p->w * channels)), sizeof *p->ring);
    p->wide = ma_alloc((size_t)(p->w * channels), sizeof *p->wide);
    p->narrow = ma_alloc((size_t)(s->ow * channels), sizeof *p->narrow);
    return p->down && p->across && p->ring && p->wide && p->narrow;
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
    s->group = good ? ma_alloc(GROUP * (size_t)padded(s->plane[0].w * s->plane[0].channels), sizeof *s->group) : NULL;
    s->fours = good ? ma_alloc((size_t)(s->plane[0].w * s->plane[0].channels), GROUP * sizeof *s->fours) : NULL;
    s->colours = yuv ? ma_alloc((size_t)size->ow, 3 * sizeof *s->colours) : NULL;
    s->bytes = ma_alloc((size_t)size->ow, 3 * ROWS);
    if (s->group && s->fours && (s->colours || !yuv) && s->bytes) return s;
    ma_scaler_free(s);
    return NULL;
}

void ma_scaler_free(ma_scaler *s) {
    if (!s) return;
    for (int k = 0; k < s->planes; k++) {
        ma_release(s->plane[k].down);
        ma_release(s->plane[k].across);
        ma_release(s->plane[k].ring);
        ma_release(s->plane[k].wide);
        ma_release(s->plane[k].narrow);
    }
    ma_release(s->group);
    ma_release(s->fours);
    ma_release(s->colours);
    ma_release(s->bytes);
    ma_release(s);
}

int ma_image_resize(const uint8_t *in, int64_t h, int64_t w, uint8_t *out, int64_t oh, int64_t ow) {
    ma_scaler *s = ma_scaler_new(&(ma_scale_sizes){0, 0, h, w, oh, ow}, NULL);
    if (!s) return -1;
    ma_scaler_run(s, (const uint8_t *const[]){in}, (int[]){(int)(3 * w)}, out, 3 * ow);
    ma_scaler_free(s);
    return 0;
}
