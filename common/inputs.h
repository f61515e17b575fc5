/* inputs: the samples that a command line names: shards, or standard input, and for a tool whose cli says video also
 *   video files      KEY.mp4 …, and KEY.txt if a.txt lies beside a.mp4; KEY is the file's name
 *   folders          all videos below them, in the order of their names; KEY is the path below the folder
 *   --list FILE      videos and captions (listing.h); KEY is what the list says, or the path below the folder that all
 *                    videos of the list have in common
 * of which --shard takes a part. Captions without a video and videos without a caption are counted; the count is told
 * at the end, where captions are expected. */
#ifndef MA_INPUTS_H
#define MA_INPUTS_H
#include "cli.h"
#include "shard.h"

typedef struct ma_inputs ma_inputs;
/* Lists are read, folders walked, keys made: what is wrong with them is known before the work begins. */
ma_inputs *ma_inputs_open(const ma_cli *, bool video, ma_err *);
int ma_inputs_next(ma_inputs *, ma_sample **out, ma_err *); /* as ma_reader_next */
void ma_inputs_close(ma_inputs *);

/* Reading on several threads. From here on ma_inputs_next gives, where it can, samples that are places only (shard.h):
 * any thread may load them. Not for inputs that are videos. */
void ma_inputs_apart(ma_inputs *);
int ma_inputs_load(ma_inputs *, ma_sample **);
/* Called for all samples in their order, once they have been loaded, or could not be: the rest of what reading one
 * after another sees. 0: go on; why: the sample is bad. 1: the input must go back to it, and what came after is void. */
int ma_inputs_settle(ma_inputs *, const ma_sample *, ma_err *why);
/* While nobody reads: goes on at this sample, as a stream to the end of its file. */
int ma_inputs_back(ma_inputs *, const ma_sample *, ma_err *);
/* Reading ends with an error, also where it waits for a pipe; from any thread. */
void ma_inputs_quit(ma_inputs *);
/* --print-list: the videos as JSON lines: key, video_path (absolute), caption, and bytes and modified, by which a file
 * that has changed is told. The exit status. */
int ma_inputs_print(const ma_cli *, FILE *out);

#endif
