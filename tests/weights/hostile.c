/* hostile: files that must be refused by name; good files cut everywhere; good files with a wrong byte anywhere, which
 * may be refused or read, but within their bounds (run it under ASan). */
#include "../../common/file.h"
#include "../tap.h"
#include "../../common/weights_private.h"
#include "temp.h"

#include <fcntl.h>

static void refuse_folder(const char *folder) {
    DIR *d = opendir(folder);
    int n = 0;
    for (struct dirent *f; d && (f = readdir(d));) {
        if (f->d_name[0] == '.') continue;
        char *path = ma_format("%s/%s", folder, f->d_name);
        ma_err e = {0};
        ma_weights *w = ma_weights_open(path, &e);
        ok(!w && strstr(e.text, f->d_name) && e.reason != MA_MEMORY, "%s", w ? path : e.text);
        ma_weights_close(w);
        free(path);
        n++;
    }
    if (d) closedir(d);
    ok(n >= 120, "%d hostile files", n);
    ok(access("hostile-ran", F_OK), "nothing was executed");
}

/* The file at path, writable, under a temporary name with the same ending. Returns its descriptor. */
static int copy(const char *path, const char *as, ma_buf *bytes) {
    if (ma_read_file(path, 1 << 20, bytes, NULL) || ma_write_file(as, bytes->data, bytes->size, NULL)) return -1;
    return open(as, O_RDWR);
}

static void cut_everywhere(const char *path, const char *as) {
    ma_buf b = {0};
    int fd = copy(path, as, &b), opened = 0, unnamed = 0;
    for (size_t n = b.size; fd >= 0 && n-- > 0;) {
        ma_err e = {0};
        if (ftruncate(fd, (off_t)n)) break;
        ma_weights *w = ma_weights_open(as, &e);
        opened += w != NULL;
        unnamed += !w && !strstr(e.text, as);
        ma_weights_close(w);
    }
    ok(fd >= 0 && !opened && !unnamed, "%s, cut at each of %zu bytes: %d read, %d refused without a name", path, b.size,
       opened, unnamed);
    close(fd);
    ma_buf_free(&b);
}

static void read_all(ma_weights *w) {
    for (int i = 0; i < ma_weights_count(w); i++) {
        const ma_entry *e = ma_weights_at(w, i);
        float *v = ma_alloc(ma_entry_count(e) + 1, sizeof *v);
        if (v) ma_entry_read(e, v, NULL);
        ma_release(v);
    }
    ma_weights_sha(w);
}

static void change_everywhere(const char *path, const char *as, unsigned char mask) {
    ma_buf b = {0};
    int fd = copy(path, as, &b), opened = 0, refused = 0;
    for (size_t i = 0; fd >= 0 && i < b.size; i++) {
        unsigned char was = (unsigned char)b.data[i], is = was ^ mask;
        ma_err e = {0};
        if (pwrite(fd, &is, 1, (off_t)i) != 1) break;
        ma_weights *w = ma_weights_open(as, &e);
        if (w) read_all(w);
        opened += w != NULL;
        refused += !w && strstr(e.text, as);
        ma_weights_close(w);
        if (pwrite(fd, &was, 1, (off_t)i) != 1) break;
    }
    ok(b.size && (size_t)(opened + refused) == b.size && refused, "%s, each byte ^ 0x%02x: %d read, %d refused", path,
       mask, opened, refused);
    close(fd);
    ma_buf_free(&b);
}

int main(void) {
    static const char *const pth[] = {"tests/weights/zip.pth", "tests/weights/zip4.pth", "tests/weights/zip64.pth",
                                      "tests/weights/old.pth"};
    temp_make();
    refuse_folder("tests/weights/hostile");

    float f[6] = {1, 2, 3, 4, 5, 6};
    uint16_t h[3] = {0x3c00, 0, 0xbc00};
    ma_named list[] = {
        {"b.half", {MA_F16, 1, {3}, h}}, {"a.weight", {MA_F32, 2, {2, 3}, f}}, {"c", {MA_F32, 0, {0}, f}}};
    const char *good = temp_path("good.safetensors"), *bad = temp_path("bad.safetensors");
    ma_err e = {0};
    ok(!ma_weights_save(good, list, 3, NULL, &e), "a good file: %s", e.text);
    cut_everywhere(good, bad);
    change_everywhere(good, bad, 0x01);
    change_everywhere(good, bad, 0xff);
    for (size_t i = 0; i < sizeof pth / sizeof *pth; i++) {
        bad = temp_path("bad.pth");
        cut_everywhere(pth[i], bad);
        change_everywhere(pth[i], bad, 0x01);
        change_everywhere(pth[i], bad, 0xff);
    }
    return tap_done();
}
