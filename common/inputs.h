/* inputs: the samples that a command line names: shards, and video files (each a sample with KEY.mp4 … and, if beside
 * it, KEY.txt), or standard input. */
#ifndef MA_INPUTS_H
#define MA_INPUTS_H
#include "cli.h"
#include "shard.h"

typedef struct ma_inputs ma_inputs;
ma_inputs *ma_inputs_open(const ma_cli *, bool video, ma_err *);
int ma_inputs_next(ma_inputs *, ma_sample **out, ma_err *); /* as ma_reader_next */
void ma_inputs_close(ma_inputs *);

#endif
