/* cut: a shard cut anywhere, and damaged anywhere: what comes out is whole and in order, and there is an error. */
#include "samples.h"
#include <zstd.h>

/* Where the samples of a shard of ours end: behind each end-of-sample mark. */
static int sample_ends(const ma_buf *b, size_t ends[SAMPLES]) {
    int n = 0;
    for (size_t at = 0; at < b->size;) {
        size_t size = ZSTD_findFrameCompressedSize(b->data + at, b->size - at);
        if (ZSTD_isError(size)) return -1;
        at += size;
        if (size == 8 && n < SAMPLES) ends[n++] = at;
    }
    return n;
}

/* Whether the error says where the cut was: in sample `whole`, behind the one before, or before the first. */
static bool placed(const ma_err *e, int whole) {
    char in[64], after[64];
    snprintf(in, sizeof in, "cut.tar: clip-%06d: ", whole);
    snprintf(after, sizeof after, "cut.tar: after clip-%06d: ", whole - 1);
    return !strncmp(e->text, in, strlen(in)) || !strncmp(e->text, after, strlen(after)) ||
           (whole == 0 && strstr(e->text, "cut.tar: before the first sample: ") == e->text);
}

/* Cuts at every byte of the first 64 KiB and every 1,000 (1,009 for tar: not always in the padding) after. */
static void cuts(const char *what, bool ours, const size_t *ends, size_t stride) {
    ma_buf b = slurp("cut.tar");
    int fd = open("cut.tar", O_WRONLY), wrong = 0, silent = 0, lost = 0, nowhere = 0, reason = 0;
    for (size_t size = b.size - 1; size<b.size; size -= size> 65536 ? stride : 1) {
        if (ftruncate(fd, (off_t)size)) exit(2);
        reading r = read_shard("cut.tar");
        int whole = 0;
        while (ours && whole < SAMPLES && ends[whole] <= size) whole++;
        wrong += r.n < 0;
        silent += r.errors != 1;
        reason += r.e.reason != MA_CUT;
        if (ours) lost += r.n != whole;
        nowhere += !placed(&r.e, ours ? whole : r.n);
    }
    close(fd);
    ok(!wrong, "%s, cut: no wrong sample", what);
    ok(!silent, "%s, cut: one error for every cut (%d)", what, silent);
    ok(!reason, "%s, cut: its reason is that the data end too early (%d)", what, reason);
    ok(!nowhere, "%s, cut: it says in or behind which sample (%d)", what, nowhere);
    if (ours) ok(!lost, "%s, cut: every sample before the cut is there (%d)", what, lost);
    ma_buf_free(&b);
}

static void flips(const ma_buf *good) {
    uint64_t state = 7;
    int wrong = 0, silent = 0;
    for (int i = 0; i < 3000; i++) {
        ma_buf b = {0};
        size_t at = i < 400 ? (size_t)i : noise(&state) % good->size;
        ma_buf_add(&b, good->data, good->size);
        b.data[at] ^= (char)(1 << noise(&state) % 8);
        FILE *f = fopen("cut.tar", "w");
        fwrite(b.data, 1, b.size, f);
        fclose(f);
        reading r = read_shard("cut.tar");
        wrong += r.n < 0;
        silent += r.errors == 0 && r.n != SAMPLES;
        ma_buf_free(&b);
    }
    ok(!wrong, "one bit flipped: no wrong sample in 3,000 tries");
    ok(!silent, "one bit flipped: no sample missing without an error (%d)", silent);
}

int main(void) {
    size_t ends[SAMPLES];
    enter_temp();
    write_shard("cut.tar", SAMPLES, 3, 2);
    ma_buf b = slurp("cut.tar");
    reading r = read_shard("cut.tar");
    ok(r.n == SAMPLES && !r.errors, "the whole shard is read whole: %d samples, %s", r.n, r.e.text);
    ok(sample_ends(&b, ends) == SAMPLES, "a frame and a mark for each sample");
    cuts("zstd", true, ends, 1000);
    write_shard("cut.tar", SAMPLES, 0, 1);
    cuts("tar", false, NULL, 1009);
    flips(&b);
    ma_buf_free(&b);
    leave_temp();
    return tap_done();
}
