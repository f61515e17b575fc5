/* cli: the option table from both ends: what is parsed, what is refused and in which words, what --help prints. */
#include "../../common/cli.h"
#include "../tap.h"

#include <fcntl.h>
#include <omp.h>
#include <signal.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

static struct {
    bool fast;
    int64_t updates, size[2], out_size[2];
    double lambda;
    const char *model;
    ma_list encoder;
    int fit;
    ma_clip_size clip;
} to;

static const ma_opt options[] = {
    {"updates", 0, MA_OPT_INT, &to.updates, "N", "refinement steps (default 12)", 1, 64},
    {"lambda", 'l', MA_OPT_REAL, &to.lambda, "X", "weight of the alignment (default 0.5)", 0, INFINITY},
    {"model", 'm', MA_OPT_TEXT, &to.model, "W", "weights", 0, 0},
    {"encoder", 'e', MA_OPT_LIST, &to.encoder, "NAME=W", "a frozen encoder; may be repeated", 0, 0},
    {"fit", 0, MA_OPT_CHOICE, &to.fit, "crop|pad|stretch", "what to do with another aspect (default crop)", 0, 0},
    {"size", 0, MA_OPT_SIZE, &to.size, "native|HxW", "size to compute at (default native)", 128, 4096},
    {"out-size", 0, MA_OPT_SIZE, &to.out_size, "HxW", "size to write", 0, 0},
    {"clip", 0, MA_OPT_CLIP, &to.clip, "FxHxW[@FPS]",
     "frames, height, width and rate of what is taken from each video, which is a long text that has to be wrapped", 0,
     0},
    {"fast", 'f', MA_OPT_FLAG, &to.fast, NULL, "less exact", 0, 0},
    {0},
};
static const char *const verbs[] = {"train", "apply", "eval", NULL};
static ma_cli cli = {.name = "ma-test", .does = "does nothing at all", .args = "[INPUT]…", .opts = options};

static char out[1 << 14], err[1 << 14];

static void slurp(FILE *f, char *to_text, size_t size) {
    rewind(f);
    to_text[fread(to_text, 1, size - 1, f)] = 0;
    fclose(f);
}

static FILE *err_file;
static int err_before;

static void catch_err(void) {
    err_file = tmpfile();
    err_before = dup(STDERR_FILENO);
    dup2(fileno(err_file), STDERR_FILENO);
}

static void release_err(void) {
    dup2(err_before, STDERR_FILENO);
    close(err_before);
    slurp(err_file, err, sizeof err);
}

/* Parses a command line, given in words; standard output and error end up in out and err. */
static int parse(const char *line) {
    static char words[1000];
    char *argv[64] = {"ma-test"};
    int argc = 1;
    snprintf(words, sizeof words, "%s", line);
    for (char *w = strtok(words, " "); w; w = strtok(NULL, " ")) argv[argc++] = w;
    ma_cli_free(&cli);
    memset(&to, 0, sizeof to);
    FILE *f = tmpfile();
    catch_err();
    int rc = ma_cli_parse(&cli, argc, argv, f);
    release_err();
    slurp(f, out, sizeof out);
    return rc;
}

static bool quiet(void) {
    return !*out && !*err;
}

static void test_values(void) {
    ok(parse("") == -1 && quiet() && cli.inputs.n == 0 && cli.common.level == 1 && cli.common.max_bad == -1 &&
           !strcmp(cli.common.device, "auto") && !cli.common.out,
       "nothing: the defaults");
    ok(parse("--updates 64 --updates=1 a") == -1 && to.updates == 1 && cli.inputs.n == 1,
       "a number; the last one counts");
    ok(parse("-l1e-3") == -1 && to.lambda == 1e-3 && parse("--lambda=.5") == -1 && to.lambda == 0.5, "a real number");
    ok(parse("-m w --model=a=b") == -1 && !strcmp(to.model, "a=b"), "text, with an equals sign in it");
    ok(parse("-e a=1 -eb=2 --encoder c --encoder=d -e e") == -1 && to.encoder.n == 5 &&
           !strcmp(to.encoder.at[1], "b=2") && !strcmp(to.encoder.at[4], "e"),
       "a list");
    ok(parse("--fit stretch") == -1 && to.fit == 2 && parse("--dtype bf16") == -1 && cli.common.dtype == 2, "a choice");
    ok(parse("--size 128x4096") == -1 && to.size[0] == 128 && to.size[1] == 4096, "a size: height first");
    ok(parse("--size native") == -1 && to.size[0] == 0, "a word in its place");
    ok(parse("--clip 49x160x240") == -1 && to.clip.frames == 49 && to.clip.width == 240 && to.clip.fps == 0, "a clip");
    ok(parse("--clip 9x8x7@12.5") == -1 && to.clip.height == 8 && to.clip.fps == 12.5, "with its rate");
    ok(parse("-fvv -v -q") == -1 && to.fast && cli.common.verbose == 3 && cli.common.quiet, "letters together");
    ok(parse("-vofile -o - x") == -1 && !strcmp(cli.common.out, "-") && cli.inputs.n == 1, "a letter with its value");
    ok(parse("- a -- --updates -x") == -1 && cli.inputs.n == 4 && !strcmp(cli.inputs.at[0], "-") &&
           !strcmp(cli.inputs.at[2], "--updates"),
       "- is an input, -- ends the options");
    ok(parse("--strict --max-bad 7") == -1 && cli.common.max_bad == 0, "--strict is --max-bad 0");
    ok(parse("--max-bad 7 --drop mp4 --drop txt -d cuda:3") == -1 && cli.common.max_bad == 7 &&
           cli.common.drop.n == 2 && !strcmp(cli.common.device, "cuda:3"),
       "common ones");
    ok(parse("--memory 24G") == -1 && cli.common.memory == (int64_t)24 << 30 && parse("--memory 3") == -1 &&
           cli.common.memory == 3,
       "a size in bytes");
    ok(parse("-j 3") == -1 && omp_get_max_threads() == 3, "-j sets the threads");
    ok(parse("--updates 12 -q") == -1 && ma_cli_given(&cli, "updates") && ma_cli_given(&cli, "quiet") &&
           !ma_cli_given(&cli, "lambda") && !ma_cli_given(&cli, "seed") && !ma_cli_given(&cli, "no-such"),
       "what was given is known");
}

static void test_refused(void) {
    static const char *const bad[][2] = {
        {"--updates 99", "--updates: 99 is not in 1..64"},
        {"--updates 0", "--updates: 0 is not in 1..64"},
        {"--updates 1k", "--updates: 1k is not a whole number"},
        {"--updates +1", "--updates: +1 is not a whole number"},
        {"--updates=", "--updates:  is not a whole number"},
        {"--seed 99999999999999999999", "--seed: 99999999999999999999 is not a whole number"},
        {"--seed -1", "--seed: -1 is less than 0"},
        {"--lambda nan", "--lambda: nan is not a number"},
        {"--lambda 0x10", "--lambda: 0x10 is not a number"},
        {"--lambda 1e999", "--lambda: 1e999 is not a number"},
        {"--lambda -1", "--lambda: -1 is less than 0"},
        {"--memory 24Q", "--memory: 24Q is not a size such as 500M or 24G"},
        {"--memory 9999999T", "--memory: 9999999T is not a size such as 500M or 24G"},
        {"--memory G", "--memory: G is not a size such as 500M or 24G"},
        {"--fit cro", "--fit: cro is not one of crop, pad, stretch"},
        {"--fit crop|pad", "--fit: crop|pad is not one of crop, pad, stretch"},
        {"--size 64x256", "--size: 64x256 is not in 128..4096"},
        {"--size 256", "--size: 256 is not native|HxW, height and width such as 160x240"},
        {"--size 256x256x", "--size: 256x256x is not native|HxW, height and width such as 160x240"},
        {"--out-size native", "--out-size: native is not HxW, height and width such as 160x240"},
        {"--out-size 0x5", "--out-size: 0x5 is not HxW, height and width such as 160x240"},
        {"--clip 49x160", "--clip: 49x160 is not FxHxW[@FPS], frames, height, width and rate such as 49x160x240@8"},
        {"--clip 4x5x6@0", "--clip: 4x5x6@0 is not FxHxW[@FPS], frames, height, width and rate such as 49x160x240@8"},
        {"--udpates 3", "--udpates: unknown option; did you mean --updates?"},
        {"--encoders=x", "--encoders: unknown option; did you mean --encoder?"},
        {"--outsize 3x3", "--outsize: unknown option; did you mean --out-size?"},
        {"--zzzzzzzz", "--zzzzzzzz: unknown option"},
        {"--update 3", "--update: unknown option; did you mean --updates?"},
        {"-vx", "-x: unknown option"},
        {"--fast=yes", "--fast: takes no value"},
        {"a --model", "--model: needs a value, W"},
        {"-v -e", "--encoder: needs a value, NAME=W"},
        {"-d gpu", "--device: gpu is not one of auto, cpu, cuda, cuda:N"},
        {"-d cuda:x", "--device: cuda:x is not one of auto, cpu, cuda, cuda:N"},
        {"--out=", "--out: needs a value, FILE"},
        {"--files-from /no/such", "--files-from: /no/such: No such file or directory"},
        {"--files-from /dev/null", "--files-from: /dev/null: names nothing"},
        {"--files-from - -", "--files-from: standard input cannot be both names and data"},
        {"--updates 99 --help", "--updates: 99 is not in 1..64"},
    };
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        char want[300];
        snprintf(want, sizeof want, "ma-test: %s (see ma-test --help)\n", bad[i][1]);
        bool good = parse(bad[i][0]) == 2 && !*out && !strcmp(err, want);
        ok(good, "refused: %s", bad[i][0]);
        if (!good) printf("# said: %s# for:  %s", err, want);
    }
}

static void test_verbs(void) {
    cli.verbs = verbs;
    ok(parse("-q apply --updates 3 a.tar") == -1 && cli.verb == 1 && cli.inputs.n == 1 &&
           !strcmp(cli.inputs.at[0], "a.tar"),
       "a command, then inputs");
    ok(parse("trian") == 2 && strstr(err, "trian: unknown command; did you mean train?"), "a command misspelt");
    ok(parse("-q") == 2 && strstr(err, "needs a command: train, apply, eval"), "none");
    ok(parse("--help") == 0 && strstr(out, "Usage: ma-test train|apply|eval [OPTION]… [INPUT]…\n"),
       "--help needs none");
    cli.verbs = NULL;
}

static void test_files_from(void) {
    char name[] = "/tmp/ma-options-XXXXXX", line[100];
    int fd = mkstemp(name);
    const char text[] = "b.mp4\n\n  spaced name.mp4\r\n-\nlast";
    ok(fd >= 0 && write(fd, text, sizeof text - 1) == sizeof text - 1, "a file of names");
    snprintf(line, sizeof line, "--files-from %s a.mp4", name);
    ok(parse(line) == -1 && cli.inputs.n == 5 && !strcmp(cli.inputs.at[0], "a.mp4") &&
           !strcmp(cli.inputs.at[1], "b.mp4") && !strcmp(cli.inputs.at[2], "  spaced name.mp4") &&
           !strcmp(cli.inputs.at[3], "-") && !strcmp(cli.inputs.at[4], "last"),
       "its names follow the arguments");
    int before = dup(STDIN_FILENO);
    dup2(fd, STDIN_FILENO);
    lseek(fd, 0, SEEK_SET);
    ok(parse("--files-from -") == -1 && cli.inputs.n == 4, "from standard input");
    dup2(before, STDIN_FILENO);
    close(before);
    ok(pwrite(fd, "\0", 1, 2) == 1 && parse(line) == 2 && strstr(err, "not a list of names"), "a binary file is none");
    close(fd);
    unlink(name);
}

/* Every line of an option must read: two spaces, "-x, " or four spaces, --name, two spaces or more, text. */
static void test_help(void) {
    ok(parse("a --help --no-such") == 0 && !*err, "--help is obeyed where it stands");
    ok(!strncmp(out, "Usage: ma-test [OPTION]… [INPUT]…\nma-test does nothing at all.\n\nOptions:\n", 72), "its head");
    ok(strstr(out, "\n  -l, --lambda X                        weight of the alignment (default 0.5)\n") &&
           strstr(out, "\n      --updates N                       refinement steps (default 12)\n") &&
           strstr(out, "\n      --dtype auto|f32|bf16|f16|tf32    type to compute in (default auto)\n") &&
           strstr(out, "\n\nCommon options:\n  -o, --out FILE                        "),
       "its lines");
    int lines = 0, widest = 0;
    bool regular = true;
    for (char *line = strtok(strstr(out, "Options:\n"), "\n"); line; line = strtok(NULL, "\n")) {
        int wide = 0;
        for (const char *c = line; *c; c++) wide += (*c & 0xc0) != 0x80;
        widest = wide > widest ? wide : widest;
        if (line[0] != ' ' || (line[2] == ' ' && line[6] == ' ')) continue; /* a heading, a line continued */
        const char *gap = strstr(line + 6, "  ");
        regular = regular && !strncmp(line + 6, "--", 2) && gap && gap[2];
        lines++;
    }
    ok(regular && lines == 9 + 17, "every option has its line (%d)", lines);
    ok(widest <= 100 && widest > 80, "long ones are wrapped (%d columns)", widest);
    ok(parse("--version") == 0 && !strcmp(out, "ma-test " MA_VERSION "\n"), "--version");
    FILE *full = fopen("/dev/full", "w");
    char *argv[] = {"ma-test", "--help"};
    catch_err();
    int rc = ma_cli_parse(&cli, 2, argv, full);
    release_err();
    ok(rc == 1 && strstr(err, "standard output: No space left"), "--help to a full disk");
    fclose(full);
}

static void test_messages(void) {
    parse("");
    catch_err();
    for (int level = 0; level < 4; level++) ma_say(&cli, level, "level %d", level);
    release_err();
    ok(!strcmp(err, "ma-test: level 0\nma-test: level 1\n"), "messages");
    parse("-q -v");
    catch_err();
    for (int level = 0; level < 4; level++) ma_say(&cli, level, "level %d", level);
    release_err();
    ok(!strcmp(err, "ma-test: level 0\nma-test: level 2\n"), "-q and -v are independent");
}

/* What a run of 120 samples of 2000 says, started `ago` seconds before. */
static void progress(const char *line, double ago) {
    parse(line);
    catch_err();
    ma_progress p;
    ma_progress_start(&p, &cli, "samples", 2000);
    p.start -= ago;
    p.last -= ago;
    p.done = 120, p.bad = 1;
    snprintf(p.note, sizeof p.note, "waits for decoding");
    ma_progress_step(&p);
    ma_progress_step(&p);
    ma_progress_end(&p);
    release_err();
}

static void test_progress(void) {
    progress("", 2);
    ok(!*err, "a short run says nothing without a terminal");
    progress("", 80);
    ok(!strcmp(err, "ma-test: 120/2000 samples, 1.5/s, 21 min left, 1 bad, waits for decoding\n"
                    "ma-test: 120/2000 samples, 1.5/s, 80 s, 1 bad, waits for decoding\n"),
       "a long one a line a minute, and its end");
    progress("-q", 80);
    ok(!*err, "-q silences it");
    progress("--progress never", 80);
    ok(!*err, "so does never");
    progress("-q --progress always", 2);
    ok(!strcmp(err, "ma-test: 120/2000 samples, 60/s, 2 s, 1 bad, waits for decoding\n"), "always is stronger than -q");
}

static int die_of(int sig, int times) {
    fflush(stdout);
    pid_t child = fork();
    if (child == 0) {
        ma_catch_signals();
        for (int i = 0; i < times; i++) raise(sig);
        _exit(ma_stopped ? 42 : 0);
    }
    int status;
    waitpid(child, &status, 0);
    return WIFSIGNALED(status) ? -WTERMSIG(status) : WEXITSTATUS(status);
}

static void test_signals(void) {
    ok(die_of(SIGINT, 1) == 42 && die_of(SIGTERM, 1) == 42, "a signal is an order to stop");
    ok(die_of(SIGINT, 2) == -SIGINT, "the second one ends at once");
    ok(die_of(SIGPIPE, 1) == 0, "SIGPIPE does nothing");
}

int main(void) {
    test_signals();
    test_values();
    test_refused();
    test_verbs();
    test_files_from();
    test_help();
    test_messages();
    test_progress();
    ma_cli_free(&cli);
    return tap_done();
}
