/* container: walks the outermost structure of a video file to see whether its end is missing.
 *
 * Why: demuxers are made to play what is there. A cut file gives fewer frames and no error, or a copy of the last one.
 * Limits: only outermost boxes, and what stands in a Matroska segment of unknown size (a live recording). What is
 * inside is the demuxer's. Bytes after the end that are no box (padding) are let pass.
 * Traps: an MP4 box of size 0 goes to the end, of size 1 has 64 bits; a Matroska size of all ones is "unknown"; a RIFF
 * size of 0 comes from writers that could not seek, and one padding byte may be absent.
 */
#include "container.h"
#include <ctype.h>
#include <string.h>

static uint64_t big_endian(const uint8_t *p, int n) {
    uint64_t v = 0;
    for (int i = 0; i < n; i++) v = v << 8 | p[i];
    return v;
}

static int cut(ma_err *e, const char *name, const char *what, size_t at, uint64_t want, size_t have) {
    return ma_fail(e, MA_CUT, "%s: cut: %s at byte %zu needs %llu bytes, %zu are there", name, what, at,
                   (unsigned long long)want, have);
}

static bool box_name(const uint8_t *p) {
    for (int i = 0; i < 4; i++)
        if (!isalnum(p[i]) && p[i] != ' ') return false;
    return true;
}

static int walk_boxes(const uint8_t *b, size_t size, const char *name, ma_err *e) {
    bool index = false;
    for (size_t at = 0; size - at >= 8;) {
        const uint8_t *p = b + at;
        size_t left = size - at;
        uint64_t want = big_endian(p, 4);
        if (!box_name(p + 4)) break;
        if (want == 1) want = left >= 16 ? big_endian(p + 8, 8) : 16;
        if (want == 0) want = left;
        if (want > left)
            return cut(e, name, (char[5]){(char)p[4], (char)p[5], (char)p[6], (char)p[7], 0}, at, want, left);
        if (want < 8) break;
        if (!memcmp(p + 4, "moov", 4) || !memcmp(p + 4, "moof", 4)) index = true;
        at += (size_t)want;
    }
    if (!index) return ma_fail(e, MA_CUT, "%s: cut, or never finished: there is no index (moov)", name);
    return 0;
}

/* A variable-length integer at p: its bytes, 0 if it is none. keep: with the marker bit, as element ids are written. */
static int vint(const uint8_t *p, size_t left, bool keep, uint64_t *value) {
    int n = 1;
    if (!left || !p[0]) return 0;
    while (!(p[0] & 0x80 >> (n - 1))) n++;
    if ((size_t)n > left) return 0;
    *value = big_endian(p, n);
    if (!keep) *value &= (1ull << 7 * n) - 1;
    return n;
}

static int walk_elements(const uint8_t *b, size_t size, const char *name, ma_err *e) {
    enum { SEGMENT = 0x18538067 };
    for (size_t at = 0; at < size;) {
        uint64_t id, want;
        int a = vint(b + at, size - at, true, &id);
        int c = a ? vint(b + at + a, size - at - (size_t)a, false, &want) : 0;
        if (!c) break;
        size_t left = size - at - (size_t)(a + c);
        bool unknown = want == (1ull << 7 * c) - 1;
        if (unknown && id != SEGMENT) break;
        at += (size_t)(a + c);
        if (unknown) continue; /* its children stand in the same row */
        if (want > left) return cut(e, name, id == SEGMENT ? "the segment" : "an element", at, want, left);
        at += (size_t)want;
    }
    return 0;
}

static int walk_riff(const uint8_t *b, size_t size, const char *name, ma_err *e) {
    for (size_t at = 0; size - at >= 12 && !memcmp(b + at, "RIFF", 4);) {
        const uint8_t *p = b + at + 4;
        uint64_t want = p[0] | (uint64_t)p[1] << 8 | (uint64_t)p[2] << 16 | (uint64_t)p[3] << 24;
        size_t left = size - at - 8;
        if (want > left) return cut(e, name, "the RIFF chunk", at, want, left);
        if (want + (want & 1) >= left || want < 4) break;
        at += 8 + (size_t)(want + (want & 1));
    }
    return 0;
}

int ma_container_whole(const void *bytes, size_t size, const char *name, ma_err *e) {
    const uint8_t *b = bytes;
    if (size < 12) return ma_fail(e, MA_CUT, "%s: %zu bytes are no video", name, size);
    if (!memcmp(b + 4, "ftyp", 4) || !memcmp(b + 4, "moov", 4) || !memcmp(b + 4, "mdat", 4) ||
        !memcmp(b + 4, "wide", 4))
        return walk_boxes(b, size, name, e);
    if (!memcmp(b, "\x1a\x45\xdf\xa3", 4)) return walk_elements(b, size, name, e);
    if (!memcmp(b, "RIFF", 4)) return walk_riff(b, size, name, e);
    return 0;
}
