/* base: errors, checked sizes, memory, the clock. See base.h for the contracts.
 *
 * Limits: messages are cut at 479 bytes.
 * Trap: names in messages come from files: control bytes would reach the user's terminal, so they are replaced.
 */
#include "base.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

/* Errors */

const char *ma_reason_name(ma_reason r) {
    static const char *const names[MA_REASONS] = {"ok",    "cut",    "corrupt", "unsupported", "missing",
                                                  "shape", "short",  "timeout", "not-finite",  "duplicate",
                                                  "io",    "memory", "device",  "usage"};
    return (unsigned)r < MA_REASONS ? names[r] : "unknown";
}

/* Makes text safe to print: no control bytes, and no UTF-8 sequence cut short at the end of the field. */
static void clean(char *text, bool was_cut) {
    size_t n = strlen(text);
    if (was_cut) {
        while (n && (text[n - 1] & 0xc0) == 0x80) n--;
        if (n && (text[n - 1] & 0xc0) == 0xc0) n--;
        text[n] = 0;
    }
    for (char *c = text; *c; c++) {
        if ((unsigned char)*c < 0x20 || *c == 0x7f) *c = '?';
    }
}

int ma_fail(ma_err *e, ma_reason reason, const char *text, ...) {
    if (!e || e->reason != MA_OK) return -1;
    va_list ap;
    va_start(ap, text);
    int n = vsnprintf(e->text, sizeof e->text, text, ap);
    va_end(ap);
    clean(e->text, n >= (int)sizeof e->text);
    e->reason = reason;
    return -1;
}

void ma_err_clear(ma_err *e) {
    e->reason = MA_OK;
    e->text[0] = 0;
}

/* Sizes and memory */

bool ma_mul(size_t a, size_t b, size_t *out) {
    return !__builtin_mul_overflow(a, b, out);
}

bool ma_sum(size_t a, size_t b, size_t *out) {
    return !__builtin_add_overflow(a, b, out);
}

uint64_t ma_little(const unsigned char *bytes, int n) {
    uint64_t v = 0;
    while (n-- > 0) v = v << 8 | bytes[n];
    return v;
}

/* calloc gives large blocks as untouched zero pages, which aligned_alloc and memset would not; so the block is
 * calloc's, and its true start stands just below the aligned address. */
void *ma_alloc(size_t n, size_t size) {
    const size_t align = 64;
    size_t bytes;
    if (!ma_mul(n, size, &bytes) || !ma_sum(bytes, align + sizeof(void *), &bytes) || bytes > PTRDIFF_MAX) return NULL;
    char *block = calloc(1, bytes);
    if (!block) return NULL;
    char *at = block + sizeof(void *);
    at += (align - (uintptr_t)at % align) % align;
    memcpy(at - sizeof(void *), &block, sizeof block);
    return at;
}

void ma_release(void *p) {
    if (!p) return;
    char *block;
    memcpy(&block, (char *)p - sizeof(void *), sizeof block);
    free(block);
}

char *ma_strdup(const char *s) {
    return strdup(s);
}

char *ma_format(const char *fmt, ...) {
    char *s;
    va_list ap;
    va_start(ap, fmt);
    int n = vasprintf(&s, fmt, ap);
    va_end(ap);
    return n < 0 ? NULL : s;
}

int ma_buf_reserve(ma_buf *b, size_t n) {
    size_t need;
    if (!ma_sum(b->size, n, &need) || !ma_sum(need, 1, &need) || need > PTRDIFF_MAX) return -1;
    if (need <= b->room) return 0;
    size_t room = b->room < 64 ? 64 : b->room;
    while (room < need) room = room > PTRDIFF_MAX / 2 ? need : room * 2;
    char *data = realloc(b->data, room);
    if (!data) return -1;
    b->data = data;
    b->room = room;
    return 0;
}

int ma_buf_add(ma_buf *b, const void *bytes, size_t n) {
    if (ma_buf_reserve(b, n) < 0) return -1;
    if (n) memcpy(b->data + b->size, bytes, n);
    b->size += n;
    b->data[b->size] = 0;
    return 0;
}

int ma_buf_printf(ma_buf *b, const char *fmt, ...) {
    va_list ap, again;
    va_start(ap, fmt);
    va_copy(again, ap);
    int n = vsnprintf(NULL, 0, fmt, ap);
    va_end(ap);
    int rc = n < 0 ? -1 : ma_buf_reserve(b, (size_t)n);
    if (rc == 0) {
        vsnprintf(b->data + b->size, (size_t)n + 1, fmt, again);
        b->size += (size_t)n;
    }
    va_end(again);
    return rc;
}

void ma_buf_free(ma_buf *b) {
    free(b->data);
    *b = (ma_buf){0};
}

/* The clock */

double ma_now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}
