/* flow_file: see flow_file.h.
 *
 * .flo (Baker et al., Middlebury): float 202021.25, int32 width, int32 height, then u, v interleaved; all
 * little-endian. KITTI 2012 and 2015 (devkit): red is u·64 + 2^15, green v·64 + 2^15, blue is not 0 where the flow is
 * known. Limits: a little-endian machine; sides to 16,384.
 */
#include "flow_file.h"
#include "video.h"

#include <math.h>
#include <string.h>

static const float MAGIC = 202021.25f, KNOWN = 1e9f;
enum { HEAD = 12, MOST_SIDE = 16384 };

static int flow_new(ma_flow *f, int64_t h, int64_t w, const char *name, ma_err *e) {
    *f = (ma_flow){.h = h, .w = w};
    f->uv = ma_alloc((size_t)(h * w), 2 * sizeof *f->uv);
    f->valid = ma_alloc((size_t)(h * w), 1);
    return f->uv && f->valid ? 0 : ma_fail(e, MA_MEMORY, "%s: out of memory", name);
}

void ma_flow_free(ma_flow *f) {
    ma_release(f->uv);
    ma_release(f->valid);
    *f = (ma_flow){0};
}

static bool is_flo(const void *bytes, size_t size) {
    return size >= sizeof MAGIC && !memcmp(bytes, &MAGIC, sizeof MAGIC);
}

static int flo_read(const char *bytes, size_t size, const char *name, ma_flow *f, ma_err *e) {
    int32_t wh[2];
    if (size < HEAD) return ma_fail(e, MA_CUT, "%s: ends inside its header", name);
    memcpy(wh, bytes + sizeof MAGIC, sizeof wh);
    if (wh[0] < 1 || wh[1] < 1 || wh[0] > MOST_SIDE || wh[1] > MOST_SIDE)
        return ma_fail(e, MA_CORRUPT, "%s: a flow of %dx%d", name, (int)wh[1], (int)wh[0]);
    size_t count = (size_t)wh[0] * (size_t)wh[1], must = HEAD + count * 2 * sizeof(float); /* sides were checked */
    if (size != must)
        return ma_fail(e, size < must ? MA_CUT : MA_CORRUPT, "%s: %zu bytes, must be %zu for %dx%d", name, size, must,
                       (int)wh[1], (int)wh[0]);
    if (flow_new(f, wh[1], wh[0], name, e)) return -1;
    memcpy(f->uv, bytes + HEAD, size - HEAD);
    for (size_t i = 0; i < count; i++) f->valid[i] = fabsf(f->uv[2 * i]) < KNOWN && fabsf(f->uv[2 * i + 1]) < KNOWN;
    return 0;
}

static int kitti_read(const void *bytes, size_t size, const char *name, ma_flow *f, ma_err *e) {
    int64_t h, w;
    uint16_t *rgb = ma_png_read16(bytes, size, name, &h, &w, e);
    int rc = rgb ? flow_new(f, h, w, name, e) : -1;
    for (int64_t i = 0; !rc && i < h * w; i++) {
        for (int k = 0; k < 2; k++) f->uv[2 * i + k] = ((float)rgb[3 * i + k] - 32768) / 64;
        f->valid[i] = rgb[3 * i + 2] != 0;
    }
    ma_release(rgb);
    return rc;
}

int ma_flow_read(const void *bytes, size_t size, const char *name, ma_flow *out, ma_err *e) {
    *out = (ma_flow){0};
    int rc = is_flo(bytes, size) ? flo_read(bytes, size, name, out, e) : kitti_read(bytes, size, name, out, e);
    if (rc) ma_flow_free(out);
    return rc;
}

int ma_flo_write(const float *uv, int64_t h, int64_t w, ma_buf *out, ma_err *e) {
    const int32_t wh[] = {(int32_t)w, (int32_t)h};
    if (ma_buf_add(out, &MAGIC, sizeof MAGIC) || ma_buf_add(out, wh, sizeof wh) ||
        ma_buf_add(out, uv, (size_t)(h * w) * 2 * sizeof *uv))
        return ma_fail(e, MA_MEMORY, "out of memory");
    return 0;
}

int ma_kitti_write(const float *uv, const uint8_t *valid, int64_t h, int64_t w, ma_buf *out, ma_err *e) {
    uint16_t *rgb = ma_alloc((size_t)(h * w), 3 * sizeof *rgb);
    if (!rgb) return ma_fail(e, MA_MEMORY, "out of memory");
    for (int64_t i = 0; i < h * w; i++) {
        for (int k = 0; k < 2; k++) rgb[3 * i + k] = (uint16_t)fmin(fmax(rint(uv[2 * i + k] * 64.0 + 32768), 0), 65535);
        rgb[3 * i + 2] = !valid || valid[i];
    }
    int rc = ma_png_write16(rgb, h, w, out, e);
    ma_release(rgb);
    return rc;
}
