/* The toy world's captions and its text encoder's tokens belong together: every word that a caption can hold is one
 * token, so that a change of the grammar is not missed; captions of up to two balls fit into the transformer's 32. */
#include "../../common/tokenizer.h"
#include "../../common/world.h"
#include "../tap.h"
#include <ctype.h>
#include <string.h>

enum { MOST = 64, CLIPS = 2000 };

/* Words and commas. */
static int64_t parts(const char *s) {
    int64_t n = 0;
    for (; *s; s++) n += *s == ',' || (isalpha((unsigned char)*s) && !isalpha((unsigned char)s[1]));
    return n;
}

static char *caption(int balls, int n) {
    char key[32];
    ma_err e = {0};
    snprintf(key, sizeof key, "text%d", n);
    ma_world *w = ma_world_make(&(ma_world_opts){{17, 48, 48, 12}, 0, balls, 0.5, 3, 3}, key, &e);
    char *text = w ? ma_world_caption(w) : NULL;
    ma_world_free(w);
    return text;
}

/* How many captions are not a token a word and an end; the most tokens of one. */
static int64_t misfits(const ma_tokenizer *t, int balls, int64_t *longest) {
    int64_t bad = 0;
    *longest = 0;
    for (int k = 0; k < CLIPS; k++) {
        int32_t ids[MOST];
        ma_err e = {0};
        char *text = caption(balls, k);
        int64_t n = text ? ma_tokenize(t, text, strlen(text), ids, MOST, &e) : -1;
        if (!text || n != parts(text) + 1) {
            if (!bad++) printf("# %s: %lld tokens\n", text ? text : "no caption", (long long)n);
        }
        if (n > *longest) *longest = n;
        free(text);
    }
    return bad;
}

int main(void) {
    ma_err e = {0};
    int64_t longest, bad;
    ma_tokenizer *t = ma_tokenizer_open("pipelines/toy/base/tokenizer", &e);
    if (!ok(t, "the shipped tokenizer opens: %s", t ? "" : e.text)) return tap_done();
    bad = misfits(t, MA_WORLD_BALLS, &longest);
    ok(!bad, "every word of %d captions is one token, but in %lld", CLIPS, (long long)bad);
    bad = misfits(t, 2, &longest);
    ok(!bad && longest <= 32, "captions of up to two balls have at most %lld tokens", (long long)longest);
    int32_t ids[MOST];
    const char strange[] = "A RED b\xc3\xb6ll <falls>, 17 times";
    ok(ma_tokenize(t, strange, strlen(strange), ids, MOST, &e) > 0, "other words and capitals are taken");
    ma_tokenizer_free(t);
    return tap_done();
}
