/* clip: what the tools that look at a sample's video share: the options that choose a clip, decoding it, its account in
 * KEY.json. */
#ifndef MA_CLIP_H
#define MA_CLIP_H

#include "cli.h"
#include "shard.h"
#include "video.h"

/* Which frames, and how they are brought to size. */
typedef struct ma_clip_args {
    ma_clip_size size;
    double start;
    int fit, when_short;  /* ma_fit, ma_short */
    int64_t first, every; /* no options: which frames are looked at, as in ma_clip_opts */
} ma_clip_args;

/* clang-format off */
#define MA_CLIP_DEFAULTS {.size = {49, 160, 240, 0}}
/* Rows of a tool's option table, for a ma_clip_args at hand. */
#define MA_CLIP_OPTIONS(a)                                                                                             \
    {"clip", 0, MA_OPT_CLIP, &(a).size, "FxHxW[@FPS]", "frames, height, width and rate (default 49x160x240)", 0, 0},   \
    {"start", 0, MA_OPT_REAL, &(a).start, "S", "seconds into the video (default 0)", 0, 1e6},                          \
    {"fit", 0, MA_OPT_CHOICE, &(a).fit, "crop|pad|stretch", "how other shapes are made to fit (default crop)", 0, 0},  \
    {"short", 0, MA_OPT_CHOICE, &(a).when_short, "error|pad|loop|skip",                                                \
     "a video with too few frames is an error, or filled up, or left out (default error)", 0, 0}
/* clang-format on */

/* The sample's video member: mp4, mkv, webm, mov or avi; else what ma-sample made, sample.mp4. NULL: it has none. */
const ma_member *ma_clip_member(const ma_sample *);
/* Decodes the clip. No video member is MA_MISSING, one too short MA_SHORT. */
int ma_clip_decode(const ma_sample *, const ma_clip_args *, ma_clip *out, ma_err *);
/* The options as they stand in KEY.json: {"clip": "49x160x240@8", "start": 0, …}. NULL: out of memory. */
cJSON *ma_clip_options_json(const ma_clip_args *);
/* A tool's entry for KEY.json: {"version", "options", "weights", "input": sha-256 of the video member}. Takes options
 * and weights over. NULL: out of memory. */
cJSON *ma_clip_entry(const ma_sample *, cJSON *options, cJSON *weights);

/* A sample on its way through a stage (stage.h): its entry for KEY.json and its clip. rgb NULL: nothing is to be done.
 */
typedef struct ma_clip_job {
    cJSON *entry;
    ma_clip clip;
} ma_clip_job;

/* For prepare: decodes, unless the members are there. Takes the entry over (NULL: out of memory). A clip too short,
 * where --short skip was given: the sample is freed and set to NULL. */
ma_clip_job *ma_clip_begin(const ma_cli *, const ma_clip_args *, ma_sample **, cJSON *entry, bool there, ma_err *why);
/* For finish, or work's end, of a good sample: the entry gets "clip" {"frames", "times", "fps", "size", "source",
 * "crop", "rotation"} and becomes the tool's in KEY.json. Nothing, where nothing was to be done. */
void ma_clip_finish(const ma_cli *, ma_sample *, ma_clip_job *, ma_err *why);
/* For release and bytes. */
void ma_clip_release(void *self, void *job);
size_t ma_clip_bytes(const void *job);

#endif
