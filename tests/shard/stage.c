/* stage: whole runs, each in a child: exit status, messages, output. */
#include "samples.h"
#include "../../common/stage.h"
#include <signal.h>
#include <sys/wait.h>

/* The tool of these runs: adds KEY.len, refuses samples whose key ends in 2, may be slow. all: prepares and finishes,
 * too, in times that differ from sample to sample. */
typedef struct tool {
    int sleep_ms, fail_at, calls;
    bool all;
} tool;

static int add_len(void *self, ma_sample **s, void **pre, int n, ma_err *why, ma_err *e) {
    tool *t = self;
    (void)pre;
    for (int i = 0; i < n; i++) {
        const ma_member *m = ma_sample_get(s[i], "mp4");
        char *text = ma_format("%zu", m ? m->size : 0);
        usleep((useconds_t)t->sleep_ms * 1000);
        if (t->fail_at && ++t->calls == t->fail_at) {
            free(text);
            return ma_fail(e, MA_DEVICE, "%s: the device is gone", s[i]->key);
        }
        if (s[i]->key[strlen(s[i]->key) - 1] == '2') ma_fail(&why[i], MA_SHORT, "3 frames, 49 wanted");
        ma_sample_put(s[i], "len", text, strlen(text), NULL);
    }
    return 0;
}

static void doze(const ma_sample *s) {
    unsigned n = 0;
    for (const char *c = s->key; *c; c++) n = 31 * n + (unsigned char)*c;
    usleep(n % 7 * 500);
}

/* Keys that end in 7 are bad, those that end in 8 left out. */
static void *prepare(void *self, ma_sample **s, ma_err *why) {
    char last = (*s)->key[strlen((*s)->key) - 1], *text = ma_strdup((*s)->key);
    (void)self;
    doze(*s);
    if (last == '7') ma_fail(why, MA_CORRUPT, "not to be decoded");
    if (last != '8') return text;
    ma_sample_free(*s);
    *s = NULL;
    return text;
}

/* Keys that end in 4 are bad. */
static void finish_sample(void *self, ma_sample *s, void *pre, ma_err *why) {
    (void)self;
    doze(s);
    if (s->key[strlen(s->key) - 1] == '4') ma_fail(why, MA_NOTFINITE, "NaN");
    ma_sample_put(s, "pre", ma_strdup(pre), strlen(pre), NULL);
}

static void release(void *self, void *pre) {
    (void)self;
    free(pre);
}

/* Runs the tool in a child with standard output on fd (or the file "out") and standard error in the file "said". */
static pid_t start(tool t, int in, int out, const char *const *args) {
    pid_t child = fork();
    if (child) return child;
    const char *argv[16] = {"ma-test"};
    int argc = 1;
    while (*args) argv[argc++] = *args++;
    int said = open("said", O_WRONLY | O_CREAT | O_TRUNC, 0666);
    dup2(said, STDERR_FILENO);
    if (in >= 0) dup2(in, STDIN_FILENO);
    if (out < 0) out = open("out", O_WRONLY | O_CREAT | O_TRUNC, 0666);
    dup2(out, STDOUT_FILENO);
    for (int fd = 3; fd < 64; fd++) close(fd); /* the parent's ends of the pipes above all */
    static const ma_opt none[] = {{0}};
    ma_cli cli = {.name = "ma-test", .does = "adds the length", .args = "[INPUT]…", .opts = none};
    int rc = ma_cli_parse(&cli, argc, (char **)(uintptr_t)argv, stdout);
    ma_stage stage = {.cli = &cli, .self = &t, .work = add_len, .batch = 4, .video = true};
    if (t.all) {
        stage.prepare = prepare;
        stage.finish = finish_sample;
        stage.release = release;
    }
    if (rc < 0) rc = ma_stage_run(&stage, STDOUT_FILENO);
    ma_cli_free(&cli);
    exit(rc);
}

/* Its exit status, once it has ended. */
static int finish(pid_t child) {
    int status;
    alarm(60);
    waitpid(child, &status, 0);
    alarm(0);
    return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
}

static int run(const char *const *args) {
    return finish(start((tool){0}, -1, -1, args));
}
#define RUN(...) run((const char *const[]){__VA_ARGS__, NULL})

/* What the run said, on one line. */
static const char *said(void) {
    static char text[4000];
    ma_buf b = slurp("said");
    snprintf(text, sizeof text, "%.3900s", b.data ? b.data : "");
    for (char *c = text; *c; c++)
        if (*c == '\n') *c = c[1] ? '|' : 0;
    ma_buf_free(&b);
    return text;
}

static void save(const char *path, const void *bytes, size_t n) {
    FILE *f = fopen(path, "w");
    if (!f || fwrite(bytes, 1, n, f) != n || fclose(f)) exit(2);
}

/* "key:ext,ext key:ext" of a shard; "!" for an error. */
static const char *outline(const char *path) {
    static char text[2000];
    ma_reader *in = ma_reader_open(&path, 1, NULL);
    ma_sample *s;
    int rc;
    *text = 0;
    while ((rc = ma_reader_next(in, &s, NULL)) != 0) {
        if (*text) strcat(text, " ");
        strcat(text, rc < 0 ? "!" : s->key);
        if (rc < 0) continue;
        for (int i = 0; i < s->n; i++) strcat(strcat(text, i ? "," : ":"), s->m[i].ext);
        ma_sample_free(s);
    }
    ma_reader_close(in);
    return text;
}

static void good_and_bad(void) {
    ok(RUN("in.tar") == 1, "one bad sample: exit 1");
    ok(!strcmp(said(), "ma-test: clip-000002: 3 frames, 49 wanted|ma-test: 5 good, 1 bad: 1 short"), "%s", said());
    ok(!strcmp(outline("out"), "clip-000000:mp4,txt,flow.npy,len clip-000001:mp4,txt,flow.npy,len "
                               "clip-000003:mp4,txt,flow.npy,len clip-000004:mp4,txt,flow.npy,len "
                               "clip-000005:mp4,txt,flow.npy,len"),
       "the others are whole");
    ok(RUN("-o", "x", "--drop", "mp4", "--drop", "txt", "two.tar") == 0, "no bad sample: exit 0");
    ok(!strcmp(outline("x"), "clip-000000:flow.npy,len clip-000001:flow.npy,len"), "-o, --drop: %s", outline("x"));
    save("x", "old", 3);
    ok(RUN("-o", "x", "--strict", "in.tar") == 1, "--strict: exit 1");
    ok(strstr(said(), "|ma-test: stopped at the first bad one|"), "%s", said());
    ma_buf b = slurp("x");
    ok(b.size == 3, "and the file under the final name is the old one");
    ma_buf_free(&b);
    ok(RUN("--max-bad", "1", "in.tar") == 1 && !strstr(said(), "stopped"), "--max-bad 1 goes on at one");
}

static void inputs(void) {
    ma_buf b = slurp("in.tar");
    save("cut.tar", b.data, 90000);
    ma_buf_free(&b);
    ok(RUN("missing.tar", "cut.tar", "two.tar") == 1, "missing and cut shards: exit 1");
    ok(strstr(said(), "ma-test: missing.tar: No such file or directory|") &&
           strstr(said(), "ma-test: cut.tar: clip-000005: ends inside a zstd frame|"),
       "%s", said());
    ok(strstr(said(), "ma-test: clip-000000: the output has a sample of this key already|"), "a key twice is refused");
    ok(strstr(said(), ": 1 cut, 1 missing, 1 short, 2 duplicate"), "all of it is counted");
    mkdir("d", 0777);
    save("d/a.b.MP4", "abc", 3);
    save("d/a.b.txt", "a caption", 9);
    save("e.webm", "", 0);
    ok(RUN("d/a.b.MP4", "nothing.mov", "e.webm", "two.tar") == 1, "a video that is not there: exit 1");
    ok(strstr(said(), "ma-test: nothing.mov: No such file") == said(), "%s", said());
    ok(!strncmp(outline("out"), "a_b:mp4,txt,len,json e:webm,len,json clip-000000:", 44), "videos are samples: %.60s",
       outline("out"));
    ma_reader *in = ma_reader_open((const char *[]){"out"}, 1, NULL);
    ma_sample *s = NULL;
    ma_reader_next(in, &s, NULL);
    const char *want =
        "{\"source\":{\"name\":\"a.b.MP4\",\"sha256\":\"ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410"
        "ff61f20015ad\"}}\n";
    const ma_member *j = s ? ma_sample_get(s, "json") : NULL;
    ok(j && j->size == strlen(want) && !memcmp(j->data, want, j->size), "KEY.json has the real name and the hash");
    ma_sample_free(s);
    ma_reader_close(in);
    ok(RUN("d/a.b.MP4", "e.webm", "x/a_b.avi") == 1, "two files of one key: exit 1");
    ok(!strcmp(said(), "ma-test: d/a.b.MP4 and x/a_b.avi would both be sample a_b") ||
           !strcmp(said(), "ma-test: x/a_b.avi and d/a.b.MP4 would both be sample a_b"),
       "%s", said());
    int fd = open("two.tar", O_RDONLY);
    ok(finish(start((tool){0}, fd, -1, (const char *const[]){NULL})) == 0, "standard input: exit 0");
    close(fd);
    ok(!strncmp(outline("out"), "clip-000000:mp4,txt,flow.npy,len clip-000001:", 40), "and its samples");
}

static void outputs(void) {
    int full = open("/dev/full", O_WRONLY), p[2];
    ok(finish(start((tool){0}, -1, full, (const char *const[]){"two.tar", NULL})) == 1, "/dev/full: exit 1");
    ok(!strcmp(said(), "ma-test: standard output: No space left on device"), "%s", said());
    close(full);
    if (pipe(p)) exit(2);
    pid_t child = start((tool){0}, -1, p[1], (const char *const[]){"in.tar", "-z0", NULL});
    close(p[1]);
    char byte;
    if (read(p[0], &byte, 1) != 1) puts("# nothing came");
    close(p[0]);
    int rc = finish(child);
    ok(rc == 1 && !strstr(said(), "pipe") && !strstr(said(), "output"), "a reader that closes early: exit 1, quietly");
    int tty = posix_openpt(O_RDWR | O_NOCTTY), end;
    if (tty < 0 || grantpt(tty) || unlockpt(tty) || (end = open(ptsname(tty), O_RDWR | O_NOCTTY)) < 0) {
        skip("no terminal to be had");
        return;
    }
    rc = finish(start((tool){0}, -1, end, (const char *const[]){"two.tar", NULL}));
    ok(rc == 2 && strstr(said(), "terminal"), "%s", said());
    rc = finish(start((tool){0}, end, -1, (const char *const[]){NULL}));
    ok(rc == 2 && strstr(said(), "no input"), "%s", said());
    close(end);
    close(tty);
}

static void stops(void) {
    int p[2];
    save("x", "old", 3);
    pid_t child = start((tool){.sleep_ms = 300}, -1, -1, (const char *const[]){"-o", "x", "in.tar", "in.tar", NULL});
    usleep(500000);
    kill(child, SIGTERM);
    double from = ma_now();
    ok(finish(child) == 1 && ma_now() - from < 5, "SIGTERM at work: exit 1, soon");
    ma_buf b = slurp("x");
    ok(b.size == 3, "the output is not replaced");
    ma_buf_free(&b);
    ok(system("ls -A | grep -q 'x.*tmp'") != 0, "and nothing half-written lies beside it");
    if (pipe(p)) exit(2);
    child = start((tool){0}, p[0], -1, (const char *const[]){NULL});
    usleep(300000);
    kill(child, SIGINT);
    from = ma_now();
    ok(finish(child) == 1 && ma_now() - from < 5, "SIGINT while input does not come: exit 1, soon");
    child = start((tool){.fail_at = 2}, -1, -1, (const char *const[]){"in.tar", "-", "-o", "x", NULL});
    int rc = finish(child);
    ok(rc == 1 && !strcmp(said(), "ma-test: clip-000001: the device is gone"), "the run fails: %s", said());
    close(p[0]);
    close(p[1]);
}

/* 200 samples on many threads: everything leaves in the order of the input, whatever became of it on the way. */
static void threads(void) {
    enum { MANY = 200 };
    static char said_before[4000];
    ma_buf one = {0};
    ma_err e = {0};
    ma_writer *w = ma_writer_open(&(ma_writer_opts){.path = "many.tar", .level = 1}, &e);
    for (int k = 0; k < MANY; k++) {
        ma_sample *s =
            ma_sample_new((char[]){'k', (char)('0' + k / 100), (char)('0' + k / 10 % 10), (char)('0' + k % 10), 0});
        ma_sample_put(s, "mp4", ma_strdup("video"), 5, &e);
        ma_writer_add(w, s, &e);
    }
    ok(!ma_writer_close(w, &e) && !e.reason, "%d samples %s", MANY, e.text);
    for (int j = 1; j <= 16; j *= 4) {
        char *option = ma_format("-j%d", j);
        int rc = finish(start((tool){.all = true}, -1, -1, (const char *const[]){option, "many.tar", NULL}));
        ma_buf b = slurp("out");
        if (j == 1) {
            ok(rc == 1 && !strncmp(said(),
                                   "ma-test: k002: 3 frames, 49 wanted|ma-test: k004: NaN|ma-test: k007: not to be "
                                   "decoded|ma-test: k012: ",
                                   100),
               "in order: %.120s…", said());
            snprintf(said_before, sizeof said_before, "%s", said());
            one = b;
        } else {
            ok(rc == 1 && b.size == one.size && !memcmp(b.data, one.data, b.size), "%s: the same bytes", option);
            ok(!strcmp(said(), said_before), "%s: the same messages", option);
            ma_buf_free(&b);
        }
        free(option);
    }
    const char *end = strstr(said_before, ": 20 corrupt");
    ok(strstr(said_before, "120 good, 60 bad") && end, "every fate is counted: %s", end ? end : "");
    ma_buf_free(&one);
    ok(finish(start((tool){.all = true}, -1, -1, (const char *const[]){"--strict", "-j8", "many.tar", NULL})) == 1 &&
           !strncmp(said(), "ma-test: k002: 3 frames, 49 wanted|ma-test: stopped at the first bad one", 70),
       "--strict: %s", said());
    ok(finish(start((tool){.all = true}, -1, -1, (const char *const[]){"-v", "-j8", "two.tar", NULL})) == 0 &&
           !strncmp(said(), "ma-test: time went to: ", 23) && strstr(said(), " %"),
       "-v: %s", said());
    pid_t child = start((tool){.all = true, .sleep_ms = 50}, -1, -1, (const char *const[]){"-j8", "many.tar", NULL});
    usleep(400000);
    kill(child, SIGTERM);
    double from = ma_now();
    ok(finish(child) == 1 && ma_now() - from < 5, "SIGTERM amid it: exit 1, soon");
}

static cJSON *entry(const char *options, const char *weights) {
    cJSON *j = cJSON_CreateObject();
    cJSON_AddStringToObject(j, "version", "1");
    cJSON_AddItemToObject(j, "options", cJSON_Parse(options));
    if (weights) cJSON_AddStringToObject(j, "weights", weights);
    return j;
}

static void entries(void) {
    static const ma_cli cli = {.name = "ma-test"};
    ma_sample *s = sample(1);
    cJSON *old = entry("{\"n\": 12, \"fit\": \"crop\"}", "abc"), *same = entry("{\"fit\": \"crop\", \"n\": 12}", "abc"),
          *options = entry("{\"fit\": \"crop\", \"n\": 20}", "abc"),
          *weights = entry("{\"n\": 12, \"fit\": \"crop\"}", NULL);
    int err = dup(STDERR_FILENO), file = open("said", O_WRONLY | O_CREAT | O_TRUNC, 0666);
    dup2(file, STDERR_FILENO);
    cJSON_AddNumberToObject(old, "seconds", 3);
    bool none = ma_entry_same(&cli, s, "ma-test", "flow.npy", same);
    bool put = ma_entry_put(s, "ma-test", old, NULL) == 0;
    bool yes = ma_entry_same(&cli, s, "ma-test", "flow.npy", same);
    bool absent = ma_entry_same(&cli, s, "ma-test", "other.npy", same);
    bool by_options = ma_entry_same(&cli, s, "ma-test", "flow.npy", options);
    bool by_weights = ma_entry_same(&cli, s, "ma-test", "flow.npy", weights);
    dup2(err, STDERR_FILENO);
    close(err);
    close(file);
    ok(put && yes, "same options and weights: passed on, whatever else the entry tells");
    ok(!none && !absent && !by_options && !by_weights, "other options, other weights, no entry, no member: made");
    ok(!strcmp(said(), "ma-test: clip-000001.flow.npy was made with other options or weights: made anew"), "once: %s",
       said());
    ma_entry_put(s, "ma-test", options, NULL);
    ok(cJSON_GetArraySize(ma_sample_json(s, NULL)) == 1, "an entry replaces the one before");
    cJSON_Delete(same);
    cJSON_Delete(weights);
    ma_sample_free(s);
}

int main(void) {
    enter_temp();
    setlinebuf(stdout);
    write_shard("in.tar", SAMPLES, 3, 1);
    write_shard("two.tar", 2, 3, 1);
    good_and_bad();
    inputs();
    outputs();
    stops();
    threads();
    entries();
    leave_temp();
    return tap_done();
}
