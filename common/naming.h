/* naming: the clips of a run: which prompt each is of, and what file an evaluator wants it in.
 *
 *     plain      KEY, or KEY-0, KEY-1 … for several clips a prompt
 *     vbench     videos/PROMPT-0 …                        VBench
 *     vbench2    videos/DIMENSION/PROMPT-0 …              VBench-2.0: 180 characters of the prompt
 *     videophy   videos/KEY as plain, and videophy.csv    VideoPhy, VideoPhy2: videopath,caption
 * A '/' in a prompt becomes '_', a name is cut to what file systems take; a name that is taken counts on: manifest.csv
 * tells which is which. Evaluators take every file of the folder for a clip: so theirs is a folder of its own. */
#ifndef MA_NAMING_H
#define MA_NAMING_H

#include "prompts.h"

typedef enum { MA_NAME_PLAIN, MA_NAME_VBENCH, MA_NAME_VBENCH2, MA_NAME_VIDEOPHY } ma_naming;

typedef struct ma_clip_name {
    size_t prompt;  /* which one it is of */
    int64_t number; /* which of the prompt's, from 0 */
    char *key;      /* its noise is drawn by it */
    char *file;     /* below the output's folder, extension included */
    bool there;     /* made, in this run or before */
} ma_clip_name;

typedef struct ma_names {
    ma_clip_name *at;
    size_t n;
} ma_names;

/* clips: a prompt. ext: ".mp4", or "" for folders. Zero-initialise; free also on error. */
int ma_names_make(ma_names *, const ma_prompts *, ma_naming, int64_t clips, const char *ext, ma_err *);
void ma_names_free(ma_names *);
/* DIR/manifest.csv (file,key,clip,prompt) and what the evaluator reads, of the clips that are there. */
int ma_names_write(const ma_names *, const ma_prompts *, ma_naming, const char *dir, ma_err *);

#endif
