/* stage: what a streaming tool does around its work: inputs → samples → work → output; tally, progress, exit status.
 * Inputs are shards, video files (each a sample with KEY.mp4 … and, if beside it, KEY.txt), or standard input. */
#ifndef MA_STAGE_H
#define MA_STAGE_H
#include "inputs.h"

typedef struct ma_stage {
    ma_cli *cli;
    void *self;
    /* Adds its member to each of the n samples (1 ≤ n ≤ batch). why[k].reason != MA_OK: sample k is bad, reported,
     * counted and left out. A sample that it frees and sets to NULL is left out in silence. -1 with *e: the run is
     * over. */
    int (*work)(void *self, ma_sample **s, void **pre, int n, ma_err *why, ma_err *e);
    /* What can be done to a sample alone before work (decoding) and after it (conversion): on -j threads that run ahead
     * of work and behind it, for many samples at once and in no order. What prepare returns comes to work as pre[k], to
     * finish, and to release, each of which may be on another thread. why: the sample is bad; one that prepare frees
     * and sets to NULL is left out in silence; work and finish see neither. NULL: nothing, pre[k] is NULL. */
    void *(*prepare)(void *self, ma_sample **, ma_err *why);
    void (*finish)(void *self, ma_sample *, void *pre, ma_err *why);
    void (*release)(void *self, void *pre);
    size_t (*bytes)(const void *pre); /* what it holds; NULL: little */
    int batch;                        /* most samples per call; 0 means 1 */
    int64_t ahead;                    /* samples that may be under way, a few more are; 0: as the batch asks */
    bool video;                       /* video files are inputs */
    bool no_output;                   /* a sink: samples are freed after work, nothing is written */
} ma_stage;

/* Runs the whole stream; the exit status: 0, or 1 when a sample or the run failed. Samples leave, and bad ones are
 * reported, in the order of the input. With -v, at the end: which part of the time it waited for its input, for prepare
 * (the decoder), worked (the device), waited for the writer. Refuses to write binary data to a terminal. out_fd: where
 * it goes without -o. */
int ma_stage_run(const ma_stage *, int out_fd);
/* The shard that -o, -z, -j and --drop ask for; without -o it is written to fd, which must not be a terminal. */
ma_writer *ma_output_open(const ma_cli *, int fd, ma_err *);
/* What is no shard, in one piece: to -o's file, complete or not at all, or to standard output. */
int ma_output_write(const ma_cli *, const ma_buf *, ma_err *);
/* The end of a run: says why it failed, if it did; its exit status: 0, 1, or 2 for a wrong call. out_fd: where it wrote
 * without -o, or -1: a reader of it that has gone is not worth words. */
int ma_exit_status(const ma_cli *, const ma_err *, int out_fd);

/* Counts bad samples: prints "ma-flow: KEY: text", returns -1 when --max-bad or --strict says stop. */
typedef struct ma_tally {
    const ma_cli *cli;
    int64_t good, bad, by_reason[MA_REASONS];
    cJSON *list; /* NULL, or an array that gets {"skipped": KEY, "reason", "text"} of each, for a log */
} ma_tally;
int ma_tally_bad(ma_tally *, const char *key, const ma_err *why);
int ma_tally_end(const ma_tally *); /* the one-line tally, if any were bad; the exit status */
/* Both ends of a run, ma_exit_status and this one; the exit status. */
int ma_tally_status(const ma_tally *, const ma_err *, int out_fd);

/* KEY.json's entry of a tool: version, options, hashes. Returns whether the sample already carries member `ext` made
 * with the same fingerprint (then pass it on); otherwise, where the member is there, says so once and makes anew.
 * Entry: {"version", "options": {…}, "weights": sha, "input": sha, …}. ma_entry_put replaces the entry (takes it over).
 */
bool ma_entry_same(const ma_cli *, ma_sample *, const char *tool, const char *ext, const cJSON *entry);
int ma_entry_put(ma_sample *, const char *tool, cJSON *entry, ma_err *);

#endif
