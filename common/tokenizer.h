/* tokenizer: text to the tokens of T5, by SentencePiece's library and the spiece.model that is published beside the
 * weights. Source: transformers T5Tokenizer. */
#ifndef MA_TOKENIZER_H
#define MA_TOKENIZER_H

#ifdef __cplusplus
extern "C" {
#endif

#include "base.h"

typedef struct ma_tokenizer ma_tokenizer;

/* path: a spiece.model, or the folder that holds it. */
ma_tokenizer *ma_tokenizer_open(const char *path, ma_err *);
void ma_tokenizer_free(ma_tokenizer *);
int ma_tokenizer_size(const ma_tokenizer *); /* ids are 0..size-1 */

/* ids[0..length-1]: the tokens of text (UTF-8, `size` bytes), the end token, padding; what does not fit is cut off
 * before the end token. Returns how many tokens the whole text and its end make: more than length where it was cut.
 * -1: failed, or length < 1. */
int64_t ma_tokenize(const ma_tokenizer *, const char *text, size_t size, int32_t *ids, int64_t length, ma_err *);

#ifdef __cplusplus
}
#endif
#endif
