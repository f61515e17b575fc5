/* forms: what a shard may come as (compressions, frames, tar dialects, concatenation) and what is refused in it. */
#include "samples.h"
#include <archive.h>
#include <archive_entry.h>
#include <zstd.h>

static void save(const char *path, const void *bytes, size_t n) {
    FILE *f = fopen(path, "w");
    if (!f || fwrite(bytes, 1, n, f) != n || fclose(f)) exit(2);
}

static void expect(const char *what, const char *path, int n, ma_reason why, const char *text) {
    reading r = read_shard(path);
    bool good = r.n == n && r.e.reason == why && (!why || strstr(r.e.text, text)) && r.errors == (why ? 1 : 0);
    if (!ok(good, "%s", what)) printf("# %d samples, %s: %s\n", r.n, ma_reason_name(r.e.reason), r.e.text);
}

/* tar, compressed as one stream by libarchive's gzip or xz. */
static void filtered(const char *path, int filter, const ma_buf *tar) {
    struct archive *a = archive_write_new();
    archive_write_add_filter(a, filter);
    archive_write_set_format_raw(a);
    archive_write_set_bytes_in_last_block(a, 1);
    struct archive_entry *e = archive_entry_new();
    archive_entry_set_filetype(e, AE_IFREG);
    archive_entry_set_pathname(e, "data");
    archive_write_open_filename(a, path);
    archive_write_header(a, e);
    archive_write_data(a, tar->data, tar->size);
    archive_entry_free(e);
    archive_write_free(a);
}

/* tar in zstd frames of `step` bytes each. */
static ma_buf frames(const ma_buf *tar, size_t step) {
    ma_buf b = {0};
    char *out = malloc(ZSTD_compressBound(step));
    for (size_t at = 0; at < tar->size; at += step) {
        size_t n = tar->size - at < step ? tar->size - at : step;
        n = ZSTD_compress(out, ZSTD_compressBound(step), tar->data + at, n, 1);
        ma_buf_add(&b, out, n);
    }
    free(out);
    return b;
}

static void compressions(const ma_buf *tar) {
    filtered("x.tgz", ARCHIVE_FILTER_GZIP, tar);
    expect("gzip", "x.tgz", SAMPLES, MA_OK, "");
    filtered("x.txz", ARCHIVE_FILTER_XZ, tar);
    expect("xz", "x.txz", SAMPLES, MA_OK, "");
    ma_buf b = slurp("x.tgz"), c = slurp("x.txz");
    save("x", b.data, b.size / 2);
    expect("half of a gzip", "x", 4, MA_CUT, "x: ");
    save("x", c.data, c.size / 2);
    reading r = read_shard("x");
    ok(r.n >= 0 && r.n < SAMPLES && r.e.reason == MA_CUT, "half of an xz: %s", r.e.text);
    ma_buf_free(&b);
    ma_buf_free(&c);
    for (size_t step = 300; step < 4 * tar->size; step = step * 5 + 7) {
        b = frames(tar, step);
        save("x", b.data, b.size);
        char what[64];
        snprintf(what, sizeof what, "zstd in frames of %zu bytes", step);
        expect(what, "x", SAMPLES, MA_OK, "");
        save("x", b.data, b.size - 1);
        r = read_shard("x");
        ok(r.n >= 0 && r.n <= SAMPLES && r.errors == 1, "the same, one byte short: %s", r.e.text);
        ma_buf_free(&b);
    }
}

/* One frame a member, as some seekable archives are made, cut behind each frame: half a sample must not come. */
static void frame_a_member(void) {
    static char block[1024];
    ma_buf b = {0};
    char out[4096];
    for (int i = 0; i < 2; i++) {
        struct archive *a = archive_write_new();
        struct archive_entry *e = archive_entry_new();
        size_t used = 0;
        archive_write_set_format_ustar(a);
        archive_write_set_bytes_per_block(a, 0);
        archive_write_open_memory(a, out, sizeof out, &used);
        archive_entry_set_filetype(e, AE_IFREG);
        archive_entry_set_pathname(e, i ? "k.b" : "k.a");
        archive_entry_set_size(e, 3);
        archive_write_header(a, e);
        archive_write_data(a, "abc", 3);
        archive_write_finish_entry(a);
        memcpy(block, out, used < sizeof block ? used : sizeof block);
        archive_entry_free(e);
        archive_write_free(a);
        size_t n = ZSTD_compress(out, sizeof out, block, sizeof block, 3);
        ma_buf_add(&b, out, n);
        save("x", b.data, b.size);
        expect("a frame a member: cut between them", "x", 0, MA_CUT, "x: k: ");
        ma_buf_add(&b, out, 5);
        save("x", b.data, b.size);
        expect("a frame a member: cut in the next", "x", 0, MA_CUT, "x: k: ");
        b.size -= 5;
    }
    ma_buf_free(&b);
}

static void put_together(const ma_buf *zst) {
    static const char skip_one[13] = {0x53, 0x2A, 0x4D, 0x18, 5, 0, 0, 0, 'h', 'e', 'l', 'l', 'o'};
    ma_buf b = {0};
    ma_buf_add(&b, skip_one, sizeof skip_one);
    ma_buf_add(&b, zst->data, zst->size);
    ma_buf_add(&b, skip_one, sizeof skip_one);
    save("x", b.data, b.size);
    expect("skippable frames before and after", "x", SAMPLES, MA_OK, "");
    save("x", b.data, b.size - 2);
    expect("a skippable frame that is cut", "x", SAMPLES, MA_CUT, "after clip-000005: ends inside a zstd frame");
    ma_buf_free(&b);
    /* the first shard of another name, so that no key is there twice */
    write_shard("one", 1, 3, 1);
    ma_buf one = slurp("one");
    for (size_t i = 0; i < 2; i++) ma_buf_add(&b, i ? zst->data : one.data, i ? zst->size : one.size);
    save("x", b.data, b.size);
    reading r = read_shard("x");
    ok(r.errors == 1 && r.e.reason == MA_DUPLICATE && strstr(r.e.text, "clip-000000"), "cat with a key twice: %s",
       r.e.text);
    ma_buf_free(&b);
    ma_buf_free(&one);
    ma_buf_add(&b, zst->data, zst->size);
    ma_buf_add(&b, "junk junk junk", 14);
    save("x", b.data, b.size);
    expect("junk after the shard", "x", SAMPLES, MA_CORRUPT, "something other than zstd");
    ma_buf_free(&b);
}

/* A reader over several files goes on behind the bad one. */
static void files(const ma_buf *zst) {
    save("bad", zst->data, zst->size / 2);
    save("good", zst->data, zst->size);
    ma_reader *in = ma_reader_open((const char *[]){"bad", "missing", "good"}, 3, NULL);
    int n = 0, errors = 0, rc;
    ma_sample *s;
    char said[3][sizeof((ma_err *)0)->text] = {""};
    for (;;) {
        ma_err e = {0};
        if (!(rc = ma_reader_next(in, &s, &e))) break;
        if (rc > 0)
            n++, ma_sample_free(s);
        else if (errors < 3)
            strcpy(said[errors++], e.text);
    }
    ma_reader_close(in);
    ok(n == 5 + SAMPLES && errors == 2, "goes on with the next file: %d samples", n);
    ok(!strcmp(said[0], "bad: clip-000005: ends inside a zstd frame"), "%s", said[0]);
    ok(!strcmp(said[1], "missing: No such file or directory"), "%s", said[1]);
}

/* ---- tar by hand */

typedef struct member {
    const char *name, *data;
    char type;
} member;

static void header(char h[512], const char *name, const char *size, char type) {
    memset(h, 0, 512);
    snprintf(h, 100, "%s", name);
    memcpy(h + 100, "0000444\0000000000\0000000000", 24);
    memcpy(h + 124, size, 12);
    memcpy(h + 136, "00000000000", 12);
    memset(h + 148, ' ', 8);
    h[156] = type;
    memcpy(h + 257, "ustar\00000", 8);
    unsigned sum = 0;
    for (int i = 0; i < 512; i++) sum += (unsigned char)h[i];
    snprintf(h + 148, 8, "%06o", sum);
}

static ma_buf tar_of(const member *m, bool end) {
    static const char zero[1024];
    ma_buf b = {0};
    for (; m->name; m++) {
        char h[512], size[13];
        size_t n = strlen(m->data);
        snprintf(size, sizeof size, "%011o", (unsigned)n);
        header(h, m->name, size, m->type ? m->type : '0');
        ma_buf_add(&b, h, 512);
        ma_buf_add(&b, m->data, n);
        ma_buf_add(&b, zero, (512 - n % 512) % 512);
    }
    if (end) ma_buf_add(&b, zero, sizeof zero);
    return b;
}

/* All keys and members of a file: "key:ext,ext key:ext", errors as "!reason". */
static char *outline(const member *m) {
    ma_buf b = tar_of(m, true), out = {0};
    save("x", b.data, b.size);
    ma_buf_free(&b);
    ma_reader *in = ma_reader_open((const char *[]){"x"}, 1, NULL);
    ma_sample *s;
    int rc;
    for (;;) {
        ma_err e = {0};
        if (!(rc = ma_reader_next(in, &s, &e))) break;
        if (out.size) ma_buf_printf(&out, " ");
        if (rc < 0) ma_buf_printf(&out, "!%s", ma_reason_name(e.reason));
        if (rc < 0) continue;
        for (int i = 0; i < s->n; i++)
            ma_buf_printf(&out, "%s%s", i ? "," : s->key, i ? "" : ":"), ma_buf_printf(&out, "%s", s->m[i].ext);
        ma_sample_free(s);
    }
    ma_reader_close(in);
    return out.data ? out.data : ma_strdup("");
}

static void names(void) {
    static const struct {
        const char *what;
        member m[8];
        const char *want;
    } t[] = {
        {"key ends at the first dot after the last slash", {{"a.b/c.d.e", "1", 0}, {"a.b/c.f", "2", 0}}, "a.b/c:d.e,f"},
        {"extensions are lower-cased", {{"k.MP4", "1", 0}, {"k.Flow.NPY", "2", 0}}, "k:mp4,flow.npy"},
        {"./ is left off", {{"./k.a", "1", 0}, {"k.b", "2", 0}}, "k:a,b"},
        {"an extension twice", {{"k.a", "1", 0}, {"k.A", "2", 0}, {"l.a", "3", 0}}, "!duplicate l:a"},
        {"members not adjacent",
         {{"k.a", "1", 0}, {"l.a", "2", 0}, {"k.b", "3", 0}, {"m.a", "4", 0}},
         "k:a l:a !duplicate m:a"},
        {"__x__ is skipped", {{"__meta__", "1", 0}, {"__m__/k.a", "2", 0}, {"k.a", "3", 0}}, "k:a"},
        {"hidden and without extension are skipped",
         {{".k.a", "1", 0}, {"k", "2", 0}, {"k.", "3", 0}, {"d/._k.a", "4", 0}},
         ""},
        {"directories and links are skipped",
         {{"d/", "", '5'}, {"k.a", "1", 0}, {"k.b", "", '2'}, {"k.c", "", '1'}},
         "k:a"},
        {"an empty member", {{"k.a", "", 0}, {"k.b", "", 0}}, "k:a,b"},
        {"a control character in a name", {{"k\033[2J.a", "1", 0}}, "!unsupported"},
        {"no member", {{0}}, ""},
    };
    for (size_t i = 0; i < sizeof t / sizeof *t; i++) {
        char *got = outline(t[i].m);
        ok(!strcmp(got, t[i].want), "%s: %s", t[i].what, got);
        free(got);
    }
}

/* Heads that lie. One good sample stands before each. */
static void hostile(void) {
    static const member good[] = {{"good.a", "1", 0}, {0}};
    static const struct {
        const char *what, size[13];
        int flip; /* a byte to spoil, or -1 */
        ma_reason why;
    } t[] = {
        {"size beyond the limit", "77777777777", -1, MA_UNSUPPORTED},
        {"size beyond the file", "00100000000", -1, MA_CUT},
        {"3 GiB claimed, nothing there", "30000000000", -1, MA_CUT},
        {"negative size in base 256",
         {'\xff', '\xff', '\xff', '\xff', '\xff', '\xff', '\xff', '\xff', '\xff', '\xff', '\xff', '\x80'},
         -1,
         MA_CORRUPT},
        {"size of 2^94 in base 256", {'\x80', '\x40'}, -1, MA_CORRUPT},
        {"size is no number: taken for 0", "xyzxyzxyzxy", -1, MA_CUT},
        {"checksum wrong", "00000000001", 0, MA_CORRUPT},
    };
    for (size_t i = 0; i < sizeof t / sizeof *t; i++) {
        ma_buf b = tar_of(good, false);
        char h[512];
        header(h, "bad.a", t[i].size, '0');
        if (t[i].flip >= 0) h[t[i].flip] ^= 1;
        ma_buf_add(&b, h, 512);
        ma_buf_add(&b, h, 512);
        save("x", b.data, b.size);
        ma_buf_free(&b);
        ma_reader *in = ma_reader_open((const char *[]){"x"}, 1, NULL);
        ma_err e = {0};
        ma_sample *s = NULL;
        int rc = ma_reader_next(in, &s, &e);
        bool first = rc == 1 && !strcmp(s->key, "good");
        if (rc == 1) ma_sample_free(s), rc = ma_reader_next(in, &s, &e);
        ok(rc == -1 && (first || e.reason == MA_CORRUPT) && e.reason == t[i].why, "%s: %s: %s", t[i].what,
           ma_reason_name(e.reason), e.text);
        ok(ma_reader_next(in, &s, &e) == 0, "then the end");
        ma_reader_close(in);
    }
}

/* pax (long and UTF-8 names) and gnu (long names) as libarchive writes them. */
static void dialects(void) {
    char name[400], want[400];
    memset(name, 'x', 300);
    strcpy(name + 300, "\xc3\xa9.npy");
    snprintf(want, sizeof want, "%.302s", name);
    for (int i = 0; i < 2; i++) {
        struct archive *a = archive_write_new();
        struct archive_entry *e = archive_entry_new();
        if (i)
            archive_write_set_format_gnutar(a);
        else
            archive_write_set_format_pax(a);
        archive_write_open_filename(a, "x");
        archive_entry_set_filetype(e, AE_IFREG);
        archive_entry_set_pathname(e, name);
        archive_entry_set_size(e, 3);
        archive_write_header(a, e);
        archive_write_data(a, "abc", 3);
        archive_entry_free(e);
        archive_write_free(a);
        ma_reader *in = ma_reader_open((const char *[]){"x"}, 1, NULL);
        ma_sample *s = NULL, *none;
        ma_err err = {0};
        bool got = ma_reader_next(in, &s, &err) == 1;
        ok(got && !strcmp(s->key, want) && ma_sample_get(s, "npy") && ma_reader_next(in, &none, &err) == 0,
           "%s: a name of 306 bytes %s", i ? "gnu" : "pax", err.text);
        if (got) ma_sample_free(s);
        ma_reader_close(in);
    }
}

int main(void) {
    enter_temp();
    write_shard("tar", SAMPLES, 0, 1);
    write_shard("zst", SAMPLES, 3, 2);
    ma_buf tar = slurp("tar"), zst = slurp("zst");
    expect("plain tar", "tar", SAMPLES, MA_OK, "");
    compressions(&tar);
    frame_a_member();
    put_together(&zst);
    files(&zst);
    names();
    hostile();
    dialects();
    save("x", "", 0);
    expect("an empty file", "x", 0, MA_CUT, "x: before the first sample: empty");
    save("x", zst.data + 100, 5000);
    expect("noise", "x", 0, MA_UNSUPPORTED, "not a tar");
    expect("a folder", "/", 0, MA_IO, "Is a directory");
    ma_buf_free(&tar);
    ma_buf_free(&zst);
    leave_temp();
    return tap_done();
}
