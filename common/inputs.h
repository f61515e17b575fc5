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
/* --print-list: the videos as JSON lines: key, video_path (absolute), caption, and bytes and modified, by which a file
 * that has changed is told. The exit status. */
int ma_inputs_print(const ma_cli *, FILE *out);

#endif
