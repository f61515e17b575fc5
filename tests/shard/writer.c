/* writer: the same bytes whatever the threads; what it refuses; where errors of the disk come out. */
#include "samples.h"
#include <errno.h>
#include <glob.h>
#include <signal.h>

static ma_sample *tiny(const char *key) {
    ma_sample *s = ma_sample_new(key);
    ma_sample_put(s, "txt", strdup("x"), 1, NULL);
    return s;
}

static void threads(void) {
    write_shard("a", SAMPLES, 3, 1);
    ma_buf a = slurp("a");
    for (int n = 2; n <= 8; n += 3) {
        write_shard("b", SAMPLES, 3, n);
        ma_buf b = slurp("b");
        ok(a.size == b.size && !memcmp(a.data, b.data, a.size), "%d threads: the same bytes as one", n);
        ma_buf_free(&b);
    }
    ma_buf_free(&a);
}

static void members(void) {
    ma_err e = {0};
    ma_writer *w = ma_writer_open(
        &(ma_writer_opts){.path = "x", .level = 3, .drop = (const char *[]){"txt", "none"}, .ndrop = 2}, &e);
    ma_sample *s = sample(2), *back = NULL, *again = NULL;
    ma_sample_put(s, "json", strdup("{\"a\": {\"b\": 1}}"), 15, &e);
    cJSON_AddNumberToObject(ma_sample_json(s, &e), "n", 0.1);
    ma_writer_add(w, s, &e);
    s = sample(3);
    cJSON_AddBoolToObject(ma_sample_json(s, &e), "fresh", true);
    ma_writer_add(w, s, &e);
    ok(ma_writer_close(w, &e) == 0 && !e.reason, "written: %s", e.text);
    ma_reader *in = ma_reader_open((const char *[]){"x"}, 1, &e);
    ma_reader_next(in, &back, &e);
    ma_reader_next(in, &again, &e);
    ma_reader_close(in);
    const ma_member *j = back ? ma_sample_get(back, "json") : NULL;
    ok(j && j->size == 22 && !memcmp(j->data, "{\"a\":{\"b\":1},\"n\":0.1}\n", 22),
       "the parsed json is what is written");
    ok(back && !ma_sample_get(back, "txt") && back->n == 3 && !strcmp(back->m[0].ext, "mp4"),
       "txt dropped, order kept");
    j = again ? ma_sample_get(again, "json") : NULL;
    ok(j && again->m + again->n - 1 == j && !memcmp(j->data, "{\"fresh\":true}\n", j->size), "a new json stands last");
    ma_sample_free(back);
    ma_sample_free(again);
}

/* Per-sample refusals leave the writer usable. */
static void refusals(void) {
    ma_err e = {0}, dup = {0}, name = {0};
    char longest[300] = "";
    ma_writer *w = ma_writer_open(&(ma_writer_opts){.path = "x", .level = 3}, &e);
    ma_writer_add(w, tiny("k"), &e);
    ok(ma_writer_add(w, tiny("k"), &dup) == -1 && dup.reason == MA_DUPLICATE, "%s", dup.text);
    memset(longest, 'n', 101);
    ok(ma_writer_add(w, tiny(longest), &name) == -1 && name.reason == MA_UNSUPPORTED && strstr(name.text, longest),
       "%.30s…%s", name.text, strrchr(name.text, ':'));
    memset(longest, 'n', 220);
    longest[140] = '/';
    ma_writer_add(w, tiny(longest), &e);
    ok(ma_writer_close(w, &e) == 0, "the rest is written %s", e.text);
    ma_reader *in = ma_reader_open((const char *[]){"x"}, 1, &e);
    ma_sample *s[3] = {0};
    for (int i = 0; i < 3; i++) ma_reader_next(in, &s[i], &e);
    ok(s[1] && !s[2] && !strcmp(s[1]->key, longest) && !e.reason, "a long name with a folder comes back %s", e.text);
    for (int i = 0; i < 3; i++) ma_sample_free(s[i]);
    ma_reader_close(in);
}

static void disk(void) {
    ma_err e = {0}, close_error = {0};
    int full = open("/dev/full", O_WRONLY), p[2], rc = 0;
    ma_writer *w = ma_writer_open(&(ma_writer_opts){.fd = full, .level = 3}, &e);
    for (int i = 0; i < SAMPLES && !rc; i++) rc = ma_writer_add(w, sample(i), &e);
    rc = ma_writer_close(w, &close_error);
    ok(rc == -1 && close_error.reason == MA_IO && strstr(close_error.text, strerror(ENOSPC)), "full: %s",
       close_error.text);
    close(full);

    if (pipe(p)) exit(2);
    close(p[0]);
    e = close_error = (ma_err){0};
    w = ma_writer_open(&(ma_writer_opts){.fd = p[1], .level = 0}, &e);
    for (int i = rc = 0; i < SAMPLES && !rc; i++) rc = ma_writer_add(w, sample(i), &e);
    rc = ma_writer_close(w, &close_error);
    ok(rc == -1 && strstr(close_error.text, strerror(EPIPE)), "a closed pipe: %s", close_error.text);
    close(p[1]);
}

/* A pipe that nobody empties must not keep abort from coming back; a file that is aborted was never there. */
static void aborts(void) {
    ma_err e = {0};
    int p[2];
    if (pipe(p)) exit(2);
    ma_writer *w = ma_writer_open(&(ma_writer_opts){.fd = p[1], .level = 0, .threads = 4}, &e);
    ma_writer_add(w, sample(5), &e);
    alarm(20);
    ma_writer_abort(w);
    alarm(0);
    ok(true, "abort returns though the pipe is full");
    close(p[0]);
    close(p[1]);
    w = ma_writer_open(&(ma_writer_opts){.path = "gone", .level = 3}, &e);
    ma_writer_add(w, sample(5), &e);
    ma_writer_abort(w);
    glob_t g;
    ok(glob("*gone*", 0, NULL, &g) == GLOB_NOMATCH && glob(".*gone*", 0, NULL, &g) == GLOB_NOMATCH,
       "an aborted file leaves nothing");
    ok(!ma_writer_open(&(ma_writer_opts){.path = "no/such/x", .level = 3}, &e) && e.reason == MA_MISSING, "%s", e.text);
}

static void samples(void) {
    static const char *const keys[][2] = {
        {"a/b.c.d.mp4", "b_c_d"}, {"x", "x"}, {".mp4", "_mp4"}, {"d/e.f/", ""}, {"a\nb.avi", "a_b"}};
    ma_err e = {0};
    for (size_t i = 0; i < sizeof keys / sizeof *keys; i++) {
        char *k = ma_key_of(keys[i][0]);
        ok(!strcmp(k, keys[i][1]), "key of %zu: %s", i, k);
        free(k);
    }
    ma_sample *s = sample(1);
    ma_array a;
    ok(ma_sample_array(s, "flow.npy", &a, &e) == 0 && a.nd == 3 && a.n[1] == 3, "an array out of a sample");
    ma_array_free(&a);
    ok(ma_sample_array(s, "x.npy", &a, &e) && e.reason == MA_MISSING, "%s", e.text);
    e = (ma_err){0};
    ok(ma_sample_array(s, "txt", &a, &e) && e.reason == MA_CORRUPT, "%s", e.text);
    e = (ma_err){0};
    ma_sample_put(s, "json", strdup("[1]"), 3, &e);
    ok(!ma_sample_json(s, &e) && e.reason == MA_CORRUPT, "%s", e.text);
    for (int i = 0; i < 9; i++) {
        char ext[16];
        snprintf(ext, sizeof ext, "e%d", i);
        ma_sample_put(s, ext, NULL, 0, NULL);
        if (i % 3 == 2) ma_sample_drop(s, "e1");
        ma_sample_put(s, "e0", strdup("z"), 1, NULL);
    }
    ok(s->n == 12 && ma_sample_get(s, "e0")->size == 1 && !ma_sample_get(s, "e1"), "put, replace, drop");
    ma_sample_free(s);
}

int main(void) {
    signal(SIGPIPE, SIG_IGN);
    enter_temp();
    threads();
    members();
    refusals();
    disk();
    aborts();
    samples();
    leave_temp();
    return tap_done();
}
