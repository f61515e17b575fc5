/* scale: see scale.h. Down the columns first, which leaves fewer rows to the pass across.
 *
 * How it is fast: in integers, of which a vector holds the most, as machines multiply pairs of 16 bits and add the two
 * products at once. Weights are multiples of a power of two, the finest that 16 bits hold, and sum to one exactly;
 * between the passes, and before colours, values have seven bits behind the point. So a value is off by about a
 * hundredth before it is rounded, where PIL's are off by up to half between the passes.
 *   ROWS rows of the output go together. On their way down a block of columns at a time is looked at, whose source
 * stays in the nearest cache, as many vectors wide as there are registers for sums; what a tap costs besides is shared
 * by them. Then the rows are turned to lie side by side, [pair of columns][row], so that the pass across, and the
 * colours, are sums of whole vectors whatever its taps are; U and V, which have the same, lie in turn and go together.
 * They are turned back as bytes.
 *
 * Limits: 8 bit a channel; bicubic only.
 * Traps: antialiasing means that the kernel widens with the scale when shrinking (as in PIL and in torchvision with
 * antialias=True), with a = -0.5, not the -0.75 of the plain bicubic of torch; weights at the border are cut and
 * normalised anew. Integers, in whatever order they are summed, make the same bytes on all machines.
 */
#include "scale.h"
#include "video.h"
#include <math.h>
#include <stdlib.h>
#include <string.h>
#ifdef __SSE2__
#include <immintrin.h>
#endif

enum {
    ROWS = 16,    /* that go together: a vector of bytes */
    MIDDLE = 128, /* taken from bytes, which leaves half of their size; as weights sum to one, it stays taken */
    POINT = 7,    /* bits behind the point of a value between the passes: what overshoots leave of 16 */
    COLOUR = 13   /* and of a factor of the matrix, which is below four */
};
typedef uint8_t bytes __attribute__((vector_size(ROWS)));

/* OP: what all kinds of x86's vectors have, by its name with one of them. */
#if defined __AVX512BW__
enum { LANES = 16 };
typedef __m512i vector;
#define OP(name) _mm512_##name
#elif defined __AVX2__
enum { LANES = 8 };
typedef __m256i vector;
#define OP(name) _mm256_##name
#else
enum { LANES = 4 };
#ifdef __SSE2__
typedef __m128i vector;
#define OP(name) _mm_##name
#endif
#endif
/* WIDE columns of two rows are two vectors of pairs; COLUMNS come down together, in a block of BLOCK times so many. */
enum { VECTORS = ROWS / LANES, BLOCK = 4, WIDE = 2 * LANES, COLUMNS = BLOCK * WIDE };
typedef int32_t ints __attribute__((vector_size(LANES * sizeof(int32_t)), may_alias));

/* What the compiler does not find by itself; vectors are of pairs of 16 bits where they are not of sums:
 * - all: a vector of the one value;
 * - add_pairs: sum and the products of a's and b's pairs;
 * - load_pairs: WIDE bytes of one row, less MIDDLE, each beside that of another (widen: those of one, 16 bits each);
 * - store_halves: two vectors of sums as load_pairs had their columns, kept to 16 bits, in order;
 * - first_halves, second_halves: of each four of a and of b, element by element in turn;
 * - load_fours: LANES / 4 fours, `apart` from each other, side by side;
 * - to_bytes: ROWS sums kept to 0..255. */
#if defined __AVX512BW__
static inline vector widen(const uint8_t *in) {
    const __m256i less = _mm256_set1_epi8((char)MIDDLE);
    return _mm512_cvtepi8_epi16(_mm256_xor_si256(_mm256_loadu_si256((const void *)in), less));
}

static inline __m128i four(const int32_t *in) {
    return _mm_load_si128((const void *)in);
}

static inline ints load_fours(const int32_t *in, int64_t apart) {
    const vector a = _mm512_inserti32x4(_mm512_castsi128_si512(four(in)), four(in + apart), 1);
    return (ints)_mm512_inserti32x4(_mm512_inserti32x4(a, four(in + 2 * apart), 2), four(in + 3 * apart), 3);
}

static inline void to_bytes(const ints *in, uint8_t *out) {
    const vector v = _mm512_max_epi32((vector)in[0], _mm512_setzero_si512());
    _mm_store_si128((void *)out, _mm512_cvtusepi32_epi8(v));
}
#elif defined __AVX2__
static inline vector widen(const uint8_t *in) {
    const __m128i less = _mm_set1_epi8((char)MIDDLE);
    return _mm256_cvtepi8_epi16(_mm_xor_si128(_mm_loadu_si128((const void *)in), less));
}

static inline ints load_fours(const int32_t *in, int64_t apart) {
    const __m128i a = _mm_load_si128((const void *)in), b = _mm_load_si128((const void *)(in + apart));
    return (ints)_mm256_inserti128_si256(_mm256_castsi128_si256(a), b, 1);
}

static inline void to_bytes(const ints *in, uint8_t *out) {
    vector v = _mm256_packs_epi32((vector)in[0], (vector)in[1]);
    v = _mm256_permute4x64_epi64(v, 0xd8); /* packs works on halves */
    _mm_store_si128((void *)out, _mm_packus_epi16(_mm256_castsi256_si128(v), _mm256_extracti128_si256(v, 1)));
}
#else
static inline ints load_fours(const int32_t *in, int64_t apart) {
    (void)apart;
    return *(const ints *)in;
}
#ifdef __SSE2__
static inline vector widen(const uint8_t *in) {
    const vector v = _mm_unpacklo_epi8(_mm_loadl_epi64((const void *)in), _mm_setzero_si128());
    return _mm_sub_epi16(v, _mm_set1_epi16(MIDDLE));
}

static inline void to_bytes(const ints *in, uint8_t *out) {
    const vector a = _mm_packs_epi32((vector)in[0], (vector)in[1]);
    const vector b = _mm_packs_epi32((vector)in[2], (vector)in[3]);
    _mm_store_si128((void *)out, _mm_packus_epi16(a, b));
}
#endif
#endif

#ifdef OP
static inline ints all(int32_t value) {
    return (ints)OP(set1_epi32)(value);
}

static inline ints add_pairs(ints sum, ints a, ints b) {
#if defined __AVX512BW__ && defined __AVX512VNNI__
    return (ints)_mm512_dpwssd_epi32((vector)sum, (vector)a, (vector)b);
#else
    return sum + (ints)OP(madd_epi16)((vector)a, (vector)b);
#endif
}

static inline void load_pairs(const uint8_t *one, const uint8_t *other, ints *out) {
    const vector a = widen(one), b = widen(other);
    out[0] = (ints)OP(unpacklo_epi16)(a, b);
    out[1] = (ints)OP(unpackhi_epi16)(a, b);
}

static inline void store_halves(ints a, ints b, int16_t *out) {
    *(vector *)out = OP(packs_epi32)((vector)a, (vector)b);
}

static inline ints first_halves(ints a, ints b) {
    return (ints)OP(unpacklo_epi32)((vector)a, (vector)b);
}

static inline ints second_halves(ints a, ints b) {
    return (ints)OP(unpackhi_epi32)((vector)a, (vector)b);
}
#else
static inline ints all(int32_t value) {
    return (ints){value, value, value, value};
}

static inline ints add_pairs(ints sum, ints a, ints b) {
    return sum + (a >> 16) * (b >> 16) + (a << 16 >> 16) * (b << 16 >> 16);
}

static inline void load_pairs(const uint8_t *one, const uint8_t *other, ints *out) {
    for (int k = 0; k < WIDE; k++)
        out[k / LANES][k % LANES] = ((one[k] - MIDDLE) & 0xffff) | (int32_t)((uint32_t)(other[k] - MIDDLE) << 16);
}

static inline int32_t keep(int32_t v, int32_t lo, int32_t hi) {
    return v < lo ? lo : v > hi ? hi : v;
}

static inline void store_halves(ints a, ints b, int16_t *out) {
    for (int k = 0; k < LANES; k++) out[k] = (int16_t)keep(a[k], INT16_MIN, INT16_MAX);
    for (int k = 0; k < LANES; k++) out[LANES + k] = (int16_t)keep(b[k], INT16_MIN, INT16_MAX);
}

static inline ints first_halves(ints a, ints b) {
    return __builtin_shuffle(a, b, (ints){0, 4, 1, 5});
}

static inline ints second_halves(ints a, ints b) {
    return __builtin_shuffle(a, b, (ints){2, 6, 3, 7});
}

static inline void to_bytes(const ints *in, uint8_t *out) {
    for (int k = 0; k < ROWS; k++) out[k] = (uint8_t)keep(in[k / LANES][k % LANES], 0, 255);
}
#endif

/* Sums are arrays of vectors, which are registers only where all loops over them are unrolled. */
#define EACH _Pragma("GCC unroll 16") for

/* Two values that lie together, and their weights. */
typedef struct tap {
    int32_t at;
    uint32_t pair;
} tap;

/* All that one output position takes, in order. */
typedef struct taps {
    tap *tap;
    int count, by; /* by: bits that the sum has too many */
    int32_t start; /* of the sum: what rounds, and what is added */
} taps;

/* The same as weights: output i takes `most` positions of the source from from[i] on, with weight[i * most], … in
 * multiples of 2^-bits[i]; its last ones may weigh nothing. */
typedef struct weights {
    int64_t *from, most;
    int16_t *weight;
    int *bits;
} weights;

/* The rows of the source that ROWS rows of the output take. */
typedef struct group {
    int64_t first, count;
} group;

typedef struct plane {
    int64_t first, w; /* the columns that are looked at */
    int channels;     /* bytes a column */
    int apart;        /* numbers of wide from one pair of bytes' rows to the next one's */
    taps *across;     /* of each column's channels, in numbers of wide */
    taps *down;       /* in numbers of the block, from the group's first row */
    group *group;     /* one for each ROWS rows */
    int32_t *wide;    /* (pairs of bytes, ROWS), padded: ROWS rows, as wide as the source */
} plane;

struct ma_scaler {
    ma_scale_sizes size;
    int planes;
    plane plane[3];    /* V has U's taps, and its rows behind each pair's of U */
    ints matrix[3][3]; /* of Y and U, of V, and what is added, which rounds */
    int32_t *wide;     /* of all planes */
    int32_t *block;    /* (pairs of source rows of a group, COLUMNS) */
    int16_t *down;     /* (ROWS, COLUMNS): the block at the new height */
    uint8_t *pixels;   /* (3·ow, padded; ROWS): rows of the output */
};

/* ---- taps */

static double cubic(double x) {
    const double a = -0.5;
    x = fabs(x);
    if (x < 1) return ((a + 2) * x - (a + 3)) * x * x + 1;
    if (x < 2) return ((x - 5) * x + 8) * x * a - 4 * a;
    return 0;
}

/* What output position i of m takes of n positions, of a source that begins at position `first` and has a sample for
 * each 2^shift: what its positions weigh together. Returns the first sample; *count: of w. */
static int64_t take(int64_t i, int64_t first, int64_t n, int64_t m, int shift, double *w, int64_t *count) {
    const double scale = (double)n / (double)m, wide = scale > 1 ? scale : 1, centre = ((double)i + 0.5) * scale;
    int64_t from = (int64_t)(centre - 2 * wide + 0.5), to = (int64_t)(centre + 2 * wide + 0.5);
    double sum = 0;
    if (from < 0) from = 0;
    if (to > n) to = n;
    const int64_t start = (first + from) >> shift;
    *count = ((first + to - 1) >> shift) - start + 1;
    for (int64_t k = 0; k < *count; k++) w[k] = 0;
    for (int64_t j = from; j < to; j++) {
        const double weight = cubic(((double)j + 0.5 - centre) / wide);
        w[((first + j) >> shift) - start] += weight;
        sum += weight;
    }
    for (int64_t k = 0; k < *count; k++) w[k] /= sum;
    return start;
}

/* Whole numbers in the place of weights, the finest that 16 bits hold, but of `bits` at most. What rounding leaves of
 * one goes to the next, so that they sum to what all sum to, however many they are. Returns their bits. */
static int make_whole(const double *w, int64_t count, int bits, int16_t *out) {
    double largest = 0, sum = 0;
    for (int64_t k = 0; k < count; k++) largest = fmax(largest, fabs(w[k]));
    while (ldexp(largest, bits) > INT16_MAX - 1) bits--;
    const double one = ldexp(1, bits);
    for (int64_t k = 0, given = 0; k < count; k++) {
        sum += w[k];
        out[k] = (int16_t)(lrint(sum * one) - given);
        given += out[k];
    }
    return bits;
}

static void free_weights(weights *t) {
    free(t->from);
    free(t->weight);
    free(t->bits);
}

/* Of m positions, with `bits` at most. false: out of memory. */
static bool make_weights(weights *t, int64_t first, int64_t n, int64_t m, int shift, int bits) {
    const double scale = (double)n / (double)m;
    *t = (weights){.most = (int64_t)ceil(4 * (scale > 1 ? scale : 1)) + 2};
    double *w = calloc((size_t)t->most, sizeof *w);
    t->from = calloc((size_t)m, sizeof *t->from);
    t->weight = calloc((size_t)m * (size_t)t->most, sizeof *t->weight);
    t->bits = calloc((size_t)m, sizeof *t->bits);
    const bool good = w && t->from && t->weight && t->bits;
    for (int64_t i = 0, count; good && i < m; i++) {
        t->from[i] = take(i, first, n, m, shift, w, &count);
        t->bits[i] = make_whole(w, count, bits, t->weight + i * t->most);
    }
    free(w);
    return good;
}

static taps *new_taps(int64_t m, int64_t most) {
    taps *t = ma_alloc((size_t)m, sizeof *t + (size_t)most * sizeof(tap));
    for (int64_t i = 0; t && i < m; i++) t[i].tap = (tap *)(t + m) + i * most;
    return t;
}

/* Output i's taps: of its positions, which count from `origin`, value c of each `channels`. Pairs are `apart`. by: bits
 * that the sum has too many besides those of the weights. add: to what comes out. */
static void pair_up(const weights *w, int64_t i, int64_t origin, int channels, int c, int64_t apart, int by, int add,
                    taps *out) {
    int64_t last = -1;
    *out = (taps){.tap = out->tap, .by = w->bits[i] + by};
    out->start = add * (1 << out->by) + (1 << out->by >> 1);
    for (int64_t k = 0; k < w->most; k++) {
        const int64_t at = (w->from[i] + k - origin) * channels + c;
        const int16_t weight = w->weight[i * w->most + k];
        if (!weight) continue;
        if (at / 2 != last) out->tap[out->count++] = (tap){(int32_t)(at / 2 * apart), 0};
        out->tap[out->count - 1].pair |= (uint32_t)(uint16_t)weight << (at % 2 ? 16 : 0);
        last = at / 2;
    }
}

/* The rows of the source that rows y, … of the output take. */
static group group_of(const weights *w, int64_t y, int64_t n) {
    int64_t first = w->from[y], last = first;
    for (int64_t k = y; k < y + n; k++)
        for (int64_t i = 0; i < w->most; i++) {
            if (!w->weight[k * w->most + i]) continue;
            if (w->from[k] + i < first) first = w->from[k] + i;
            if (w->from[k] + i > last) last = w->from[k] + i;
        }
    return (group){first, last + 1 - first};
}

/* ---- turning */

/* LANES rows of COLUMNS / 2 pairs become columns `apart` from each other: four columns at a time, whose rows y, y + 4,
 * … are turned side by side, as vectors shuffle within fours at the least cost. */
static inline void turn(const int32_t *from, int32_t *to, int64_t apart) {
    for (int x = 0; x < COLUMNS / 2; x += 4, to += 4 * apart) {
        ints v[4];
        EACH (int k = 0; k < 4; k++) v[k] = load_fours(from + k * COLUMNS / 2 + x, 2 * COLUMNS);
        const ints a = first_halves(v[0], v[2]), b = first_halves(v[1], v[3]);
        const ints c = second_halves(v[0], v[2]), d = second_halves(v[1], v[3]);
        *(ints *)to = first_halves(a, b);
        *(ints *)(to + apart) = second_halves(a, b);
        *(ints *)(to + 2 * apart) = first_halves(c, d);
        *(ints *)(to + 3 * apart) = second_halves(c, d);
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

/* COLUMNS of the n columns that are left, or all, of so many of the source's rows, by twos; the last may be alone, and
 * then beside itself. Each is needed for a few rows of the output. */
static void pair_block(const uint8_t *in, int64_t stride, int64_t count, int64_t n, int32_t *out) {
    uint8_t part[2][COLUMNS] = {{0}};
    for (int64_t y = 0; y < count; y += 2, in += 2 * stride, out += COLUMNS) {
        const uint8_t *row[2] = {in, y + 1 < count ? in + stride : in};
        for (int k = 0; k < 2 && n < COLUMNS; k++) row[k] = memcpy(part[k], row[k], (size_t)n);
        for (int k = 0; k < COLUMNS; k += WIDE) load_pairs(row[0] + k, row[1] + k, (ints *)(out + k));
    }
}

/* COLUMNS of one output row. */
static inline void sum_block(const int32_t *block, const taps *t, int16_t *out) {
    ints sum[2 * BLOCK];
    EACH (int i = 0; i < 2 * BLOCK; i++) sum[i] = all(t->start);
    for (const tap *k = t->tap, *end = k + t->count; k < end; k++) {
        const ints *in = (const ints *)(block + k->at), pair = all((int32_t)k->pair);
        EACH (int i = 0; i < 2 * BLOCK; i++) sum[i] = add_pairs(sum[i], in[i], pair);
    }
    EACH (int i = 0; i < BLOCK; i++) store_halves(sum[2 * i] >> t->by, sum[2 * i + 1] >> t->by, out + i * WIDE);
}

/* Output rows y, …, y + n - 1 of the plane, as wide as the source. Meanwhile, a few at a time, the rows are sent for
 * that the next ones take besides: a line of the cache from each row is no order that the machine foresees. */
static void fill_wide(const ma_scaler *s, const plane *p, const uint8_t *in, int64_t stride, int64_t y, int64_t n) {
    enum { LINE = 64 };
    const int64_t w = p->w * p->channels;
    const group *g = p->group + y / ROWS;
    const int64_t next = g->first + g->count, more = y + ROWS < s->size.oh ? g[1].first + g[1].count - next : 0;
    in += p->first * p->channels;
    for (int64_t x = 0; x < w; x += COLUMNS) {
        /* the last one whole, too, but by whole pairs */
        const int64_t at = x + COLUMNS > w && w >= COLUMNS && w % 2 == 0 ? w - COLUMNS : x;
        const int64_t end = (at + COLUMNS < w ? at + COLUMNS : w) - 1;
        pair_block(in + g->first * stride + at, stride, g->count, w - at, s->block);
        for (int64_t k = 0; k < n; k++) {
            for (int64_t i = k; i < more; i += n)
                for (int64_t l = end; l > end - COLUMNS && l >= x; l -= LINE)
                    __builtin_prefetch(in + (next + i) * stride + l, 0, 2);
            sum_block(s->block, p->down + y + k, s->down + k * COLUMNS);
        }
        for (int k = 0; k < ROWS; k += LANES)
            turn((const int32_t *)(s->down + k * COLUMNS), p->wide + at / 2 * p->apart + k, p->apart);
    }
}

/* ---- across, and out */

/* One value of a column, of so many planes that lie in turn, with what rounds. */
static inline void sum_across(const plane *p, int64_t x, const int planes, ints *out) {
    const taps *t = p->across + x;
    ints sum[2 * VECTORS];
    EACH (int i = 0; i < planes * VECTORS; i++) sum[i] = all(t->start);
    for (const tap *k = t->tap, *end = k + t->count; k < end; k++) {
        const ints *in = (const ints *)(p->wide + k->at), pair = all((int32_t)k->pair);
        EACH (int i = 0; i < planes * VECTORS; i++) sum[i] = add_pairs(sum[i], in[i], pair);
    }
    EACH (int i = 0; i < planes * VECTORS; i++) out[i] = sum[i] >> t->by;
}

static void fill_from_rgb(const ma_scaler *s) {
    for (int64_t x = 0; x < 3 * s->size.ow; x++) {
        ints sum[VECTORS];
        sum_across(s->plane, x, 1, sum);
        to_bytes(sum, s->pixels + x * ROWS);
    }
}

static void fill_from_yuv(const ma_scaler *s) {
    for (int64_t x = 0; x < s->size.ow; x++) {
        ints y[VECTORS], uv[2 * VECTORS], sum[VECTORS];
        sum_across(s->plane, x, 1, y);
        sum_across(s->plane + 1, x, 2, uv);
        EACH (int i = 0; i < VECTORS; i++) y[i] = (y[i] & 0xffff) | uv[i] << 16;
        for (int c = 0; c < 3; c++) {
            const ints *m = s->matrix[c];
            EACH (int i = 0; i < VECTORS; i++)
                sum[i] = add_pairs(add_pairs(m[2], y[i], m[0]), uv[VECTORS + i], m[1]) >> (POINT + COLOUR);
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

static bool make_down(plane *p, const ma_scale_sizes *s, int shift, int64_t *most) {
    weights w;
    bool good = make_weights(&w, s->y, s->h, s->oh, shift, 20);
    p->down = good ? new_taps(s->oh, w.most) : NULL;
    p->group = ma_alloc((size_t)(s->oh + ROWS - 1) / ROWS, sizeof *p->group);
    good = p->down && p->group;
    for (int64_t y = 0; good && y < s->oh; y += ROWS) {
        const int64_t n = y + ROWS < s->oh ? ROWS : s->oh - y;
        const group g = p->group[y / ROWS] = group_of(&w, y, n);
        for (int64_t k = y; k < y + n; k++) pair_up(&w, k, g.first, 1, 0, COLUMNS, -POINT, 0, p->down + k);
        if (g.count > *most) *most = g.count;
    }
    free_weights(&w);
    return good;
}

/* by, add: as in pair_up. */
static bool make_across(plane *p, const ma_scale_sizes *s, int shift, int by, int add) {
    weights w;
    bool good = make_weights(&w, s->x, s->w, s->ow, shift, 15);
    p->across = good ? new_taps(s->ow * p->channels, w.most) : NULL;
    for (int64_t x = 0; p->across && x < s->ow; x++)
        for (int c = 0; c < p->channels; c++)
            pair_up(&w, x, p->first, p->channels, c, p->apart, by, add, p->across + x * p->channels + c);
    free_weights(&w);
    return p->across;
}

/* A plane, of `together` that lie in turn. most: of its groups' rows and of those before. */
static bool make_plane(plane *p, const ma_scale_sizes *s, int down, int across, int channels, int together,
                       int64_t *most) {
    int64_t first = s->x >> across;
    *p = (plane){.first = first, .w = ((s->x + s->w - 1) >> across) - first + 1, .channels = channels};
    p->apart = together * ROWS;
    const bool rgb = channels > 1; /* bytes come out of it; else what becomes colours */
    return make_down(p, s, down, most) && make_across(p, s, across, rgb ? POINT : 0, rgb ? MIDDLE : 0);
}

/* Numbers of a plane's wide: what is behind the last column, to a whole block, is computed and not looked at. */
static int64_t wide_size(const plane *p) {
    return (p->w * p->channels + COLUMNS) / 2 * p->apart;
}

/* A number with so many bits behind the point. */
static int32_t whole(float v, int bits) {
    return (int32_t)lrintf(ldexpf(v, bits));
}

/* Two factors of the matrix, side by side. */
static ints factors(float one, float other) {
    return all((int32_t)((uint16_t)whole(one, COLOUR) | (uint32_t)whole(other, COLOUR) << 16));
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
    const int64_t wide = good ? wide_size(p) + (yuv ? wide_size(p + 1) : 0) : 0;
    good = good && wide <= INT32_MAX && (most + 1) / 2 * COLUMNS <= INT32_MAX; /* as a tap's place is */
    s->wide = good ? ma_alloc((size_t)wide, sizeof *s->wide) : NULL;
    s->block = good ? ma_alloc((size_t)(most + 1) / 2, COLUMNS * sizeof *s->block) : NULL;
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
    for (int c = 0; c < 3; c++) {
        const float *m = yuv->matrix[c];
        s->matrix[c][0] = factors(m[0], m[1]);
        s->matrix[c][1] = factors(m[2], 0);
        s->matrix[c][2] = all(whole(m[3] + MIDDLE * (m[0] + m[1] + m[2]) + 0.5f, POINT + COLOUR));
    }
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
