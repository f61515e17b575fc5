/* prompts: what is to be generated, from arguments, lines, a CSV, or the samples of shards. Each has a key of its own,
 * by which its noise is drawn and its clips are named; the same text may come many times. */
#ifndef MA_PROMPTS_H
#define MA_PROMPTS_H

#include "keyset.h"
#include "stage.h"

typedef struct ma_prompt {
    char *key, *text;
    char *group;        /* the column dimension, or the name of the file of lines; NULL: neither */
    ma_array embedding; /* (L,E); data NULL: it has none */
    bool given;         /* it came with one, KEY.text.npy */
} ma_prompt;

typedef struct ma_prompts {
    ma_prompt *at;
    size_t n, room;
    ma_keyset keys;
} ma_prompts;

/* Keys: the prompt's number, from 0, and its first words: 00000-a-red-ball. */
int ma_prompts_add(ma_prompts *, const char *text, const char *group, ma_err *);
/* A prompt a line, empty ones left out. A name that ends in .csv or .tsv: its columns caption, text or prompt, and, if
 * they are there, key or id, and dimension. "-": lines of standard input. */
int ma_prompts_file(ma_prompts *, const char *path, ma_err *);
/* The inputs' samples: the first line of KEY.txt, KEY.text.npy of `width` numbers a token. Bad ones are told and
 * counted. */
int ma_prompts_samples(ma_prompts *, const ma_cli *, int64_t width, ma_tally *, ma_err *);
void ma_prompts_free(ma_prompts *);

#endif
