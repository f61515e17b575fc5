/* cli: one table of options from which the parser, --help and the check of the man page are made; messages; progress.
 * A tool's main():
 *     static const ma_opt options[] = {{"updates", 0, MA_OPT_INT, &updates, "N", "refinement steps (default 12)", 1,
 * 64}, …, {0}}; static ma_cli cli = {.name = "ma-flow", .does = "adds optical flow to every sample", .args =
 * "[INPUT]…", .opts = options}; int rc = ma_cli_parse(&cli, argc, argv, stdout); if (rc >= 0) return rc;
 */
#ifndef MA_CLI_H
#define MA_CLI_H

#include "base.h"
#include "preset.h"
#include <stdio.h>

typedef enum {
    MA_OPT_FLAG,   /* bool * */
    MA_OPT_INT,    /* int64_t *, lo..hi */
    MA_OPT_REAL,   /* double *, lo..hi */
    MA_OPT_TEXT,   /* const char ** */
    MA_OPT_LIST,   /* ma_list *: may be given many times */
    MA_OPT_CHOICE, /* int *: index into choices, "auto|f32|bf16" */
    MA_OPT_SIZE,   /* int64_t[2]: height, width from "HxW", each lo..hi; where arg is "WORD|HxW", WORD gives 0, 0 */
    MA_OPT_CLIP,   /* ma_clip_size *: FxHxW or FxHxW@FPS */
    MA_OPT_BYTES,  /* int64_t *: a number with K, M, G or T behind it (of 1024), lo..hi */
    MA_OPT_PART,   /* int64_t[2]: I, N from "I/N", 0 ≤ I < N */
    MA_OPT_COUNT   /* int *: each time adds one (-v -v) */
} ma_opt_type;

typedef struct ma_opt {
    const char *name; /* long name, without the dashes */
    char letter;      /* short name, or 0 */
    ma_opt_type type;
    void *to;
    const char *arg;  /* what --help calls the value; for a choice the choices */
    const char *help; /* one line, lower case, ends with the default */
    double lo, hi;    /* the range of a number, both included; lo == hi: any */
} ma_opt;

typedef struct ma_list {
    const char **at;
    int n;
} ma_list;

typedef struct ma_clip_size {
    int64_t frames, height, width;
    double fps; /* 0: as the video has it */
} ma_clip_size;

/* The options that every tool has (see ARCHITECTURE: the manners of every tool). */
typedef struct ma_common {
    const char *out;        /* -o FILE; NULL: standard output */
    const char *files_from; /* --files-from FILE|- */
    const char *device;     /* -d auto|cpu|cuda|cuda:N */
    int dtype;              /* --dtype auto|f32|bf16|f16|tf32 */
    int64_t memory;         /* --memory; 0: all there is */
    int64_t threads;        /* -j; 0: all */
    int64_t seed;           /* --seed */
    int64_t level;          /* -z; 0: plain tar */
    int64_t max_bad;        /* --max-bad; -1: no limit */
    bool strict, dry_run, quiet, help, version;
    int verbose;
    int progress; /* --progress auto|always|never */
    ma_list drop; /* --drop EXT */
    /* of tools that read video: */
    const char *list;     /* --list FILE */
    const char *captions; /* --captions FILE */
    int64_t part[2];      /* --shard I/N; {0, 1}: all */
    bool print_list;      /* --print-list */
    /* of tools that presets have a section for: */
    const char *preset; /* --preset NAME|FILE */
} ma_common;

typedef struct ma_cli {
    const char *name;         /* "ma-flow" */
    const char *does;         /* one line */
    const char *args;         /* "[INPUT]…" */
    const ma_opt *opts;       /* the tool's own, ended by {0} */
    const char *const *verbs; /* NULL, or the words that may stand first ("train", "apply", NULL) */
    bool video;   /* its inputs are videos: it has --list, --captions, --shard and --print-list (inputs.h) */
    bool presets; /* it has --preset (preset.h) */
    /* filled in by ma_cli_parse */
    int verb;       /* index into verbs */
    ma_list inputs; /* positional arguments, and what --files-from named, in order */
    ma_common common;
    uint64_t given;   /* a bit an option, the tool's own, then the common ones: on the command line or in a preset */
    ma_buf names;     /* what --files-from held; inputs point into it */
    ma_preset preset; /* what --preset held; options point into it */
    const ma_preset_line *reading; /* of the preset, for messages; NULL: the command line is being read */
    /* filled in by ma_team_open, else 0: one of several processes that do the same. All but rank 0 are silent but for
     * errors, and say who they are; each takes the GPU of its number on this host. */
    int rank, ranks, local;
} ma_cli;

/* Parses the command line. -1: go on. Otherwise the exit status to return: 0 after --help or --version (written to
 * out), 2 after a message on standard error (unknown options name the nearest). Options may be -o FILE, -oFILE,
 * --out=FILE, --out FILE; "--" ends them; "-" is an input. OMP threads are set from -j. */
int ma_cli_parse(ma_cli *, int argc, char **argv, FILE *out);
void ma_cli_help(const ma_cli *, FILE *out);
/* Whether the user, or the preset that he named, gave this option (long name), rather than its default standing. */
bool ma_cli_given(const ma_cli *, const char *name);
void ma_cli_free(ma_cli *);

#define MA_VERSION "0.1.0"

/* Messages: "ma-flow: text" on standard error, after clearing the progress line. Level 0 always (errors), 1 unless -q,
 * 2 with -v. */
void ma_say(const ma_cli *, int level, const char *fmt, ...) __attribute__((format(printf, 3, 4)));

/* Writes out what was printed on standard output. */
int ma_flush_stdout(ma_err *);

/* Progress: a line rewritten in place on a terminal, one line a minute elsewhere. --progress always shows it under -q
 * too, and its last state when the run ends. For one thread. */
typedef struct ma_progress {
    const ma_cli *cli;
    const char *unit; /* "samples", "steps" */
    int64_t total;    /* 0: not known */
    int64_t done, bad;
    double start, last;
    char note[160]; /* shown at the end of the line: loss, what it waits for */
} ma_progress;
void ma_progress_start(ma_progress *, const ma_cli *, const char *unit, int64_t total);
void ma_progress_step(ma_progress *); /* shows done, bad, note; call as often as you like */
void ma_progress_end(ma_progress *);

/* SIGINT and SIGTERM set this; loops look at it, stop, and leave no half-written file. SIGPIPE becomes EPIPE. */
extern _Atomic int ma_stopped;
void ma_catch_signals(void);

#endif
