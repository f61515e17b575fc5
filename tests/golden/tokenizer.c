/* golden/tokenizer: 2,000 lines, made by a formula, become the tokens that transformers' T5Tokenizer makes of them
 * (tokenizer.py), whole and cut or padded to 226; what no list can hold; models that are none. The published
 * spiece.model must be at hand. */
#include "../../common/tokenizer.h"
#include "../../common/file.h"
#include "golden.h"

enum { MOST = 1 << 16 };

typedef struct lines {
    cJSON *lists;
    uint64_t state;
} lines;

static const cJSON *list(const lines *l, const char *name) {
    const cJSON *x = cJSON_GetObjectItem(l->lists, name);
    golden_need(x, name, NULL);
    return x;
}

/* 0..n-1 */
static uint64_t draw(lines *l, int n) {
    uint64_t z = l->state += 0x9E3779B97F4A7C15u;
    z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9u;
    z = (z ^ z >> 27) * 0x94D049BB133111EBu;
    return (z ^ z >> 31) % (uint64_t)n;
}

static void add(ma_buf *text, const char *s, size_t n) {
    golden_need(!ma_buf_add(text, s, n), "memory", NULL);
}

/* One of the words of a list. */
static void add_one(lines *l, ma_buf *text, const char *name) {
    const cJSON *words = list(l, name);
    const char *s = cJSON_GetArrayItem(words, (int)draw(l, cJSON_GetArraySize(words)))->valuestring;
    add(text, s, strlen(s));
}

/* As UTF-8. */
static void add_code(ma_buf *text, uint32_t c) {
    int more = c < 0x80 ? 0 : c < 0x800 ? 1 : c < 0x10000 ? 2 : 3;
    static const uint32_t lead[] = {0, 0xc0, 0xe0, 0xf0};
    char s[4];
    s[0] = (char)(lead[more] | c >> 6 * more);
    for (int k = 1; k <= more; k++) s[k] = (char)(0x80 | (c >> 6 * (more - k) & 0x3f));
    add(text, s, (size_t)more + 1);
}

static void add_characters(lines *l, ma_buf *text) {
    const cJSON *ranges = list(l, "ranges");
    int64_t range[2];
    golden_shape(cJSON_GetArrayItem(ranges, (int)draw(l, cJSON_GetArraySize(ranges))), range);
    for (uint64_t n = 1 + draw(l, 8); n > 0; n--)
        add_code(text, (uint32_t)(range[0] + (int64_t)draw(l, (int)(range[1] - range[0]))));
}

/* Line i, as tokenizer.py has it. */
static void make_line(lines *l, int i, ma_buf *text) {
    const cJSON *hand = list(l, "hand");
    l->state = (uint64_t)i;
    text->size = 0;
    if (i < cJSON_GetArraySize(hand)) {
        const char *s = cJSON_GetArrayItem(hand, i)->valuestring;
        return add(text, s, strlen(s));
    }
    if (i % 500 == 0) {
        while (text->size < 10000) {
            add_one(l, text, "prompt");
            add_one(l, text, "spaces");
        }
        return;
    }
    if (i % 4) {
        for (uint64_t n = 5 + draw(l, 20); n > 0; n--) {
            add_one(l, text, "prompt");
            add(text, n > 1 ? " " : ".", 1);
        }
        return;
    }
    for (uint64_t n = 1 + draw(l, 60); n > 0; n--) {
        uint64_t kind = draw(l, 8);
        if (kind < 7)
            add_one(l, text, kind < 4 ? "prompt" : "rare");
        else
            add_characters(l, text);
        add_one(l, text, "spaces");
    }
}

static uint64_t fnv(const int32_t *ids, int64_t n) {
    uint64_t h = 0xCBF29CE484222325u;
    for (int64_t k = 0; k < 4 * n; k++) h = (h ^ ((uint32_t)ids[k / 4] >> 8 * (k % 4) & 0xff)) * 0x100000001B3u;
    return h;
}

static uint64_t want(const ma_weights *fixture, const char *name, int i) {
    const ma_entry *e = ma_weights_find(fixture, name);
    golden_need(e && e->type == MA_I64 && e->nd == 1 && i < e->n[0], name, NULL);
    uint64_t h;
    memcpy(&h, (const char *)e->data + 8 * (size_t)i, sizeof h);
    return h;
}

static void check_lines(const ma_weights *fixture, const ma_tokenizer *t) {
    lines l = {.lists = cJSON_Parse(ma_weights_meta(fixture, "lists"))};
    int64_t length = (int64_t)list(&l, "length")->valuedouble, count = ma_weights_find(fixture, "whole")->n[0];
    int32_t *ids = ma_alloc(MOST, sizeof *ids), *cut = ma_alloc((size_t)length, sizeof *cut);
    ma_buf text = {0};
    ma_err e = {0};
    int wrong = 0, wrong_cut = 0, longest = 0, was_cut = 0;
    for (int i = 0; i < count; i++) {
        make_line(&l, i, &text);
        int64_t n = ma_tokenize(t, text.data ? text.data : "", text.size, ids, MOST, &e);
        golden_need(n > 0 && n <= MOST, "a line", &e);
        if (fnv(ids, n) != want(fixture, "whole", i) && wrong++ < 5)
            printf("# line %d, %lld tokens: %.300s\n", i, (long long)n, text.data);
        wrong_cut += ma_tokenize(t, text.data ? text.data : "", text.size, cut, length, &e) != n ||
                     fnv(cut, length) != want(fixture, "cut", i);
        was_cut += n > length;
        if ((int)text.size > longest) longest = (int)text.size;
    }
    ok(count == 2000 && longest >= 10000 && !wrong, "%lld lines, up to %d bytes: %d differ", (long long)count, longest,
       wrong);
    ok(was_cut >= 3 && !wrong_cut, "cut or padded to %lld: %d differ (%d were cut)", (long long)length, wrong_cut,
       was_cut);
    ma_buf_free(&text);
    ma_release(ids);
    ma_release(cut);
    cJSON_Delete(l.lists);
}

static void check_text(const ma_tokenizer *t, const char *what, const char *text, size_t size, const int32_t *ids,
                       int64_t n) {
    int32_t got[8] = {0};
    ma_err e = {0};
    ok(ma_tokenize(t, text, size, got, 8, &e) == n && !memcmp(got, ids, (size_t)n * sizeof *ids), "%s %s", what,
       e.text);
}

static void check_refused(const char *folder) {
    static const char *const bad[] = {"", "no model", "\n\xff\xff\xff\xff\x0f", NULL};
    char path[] = "/tmp/ma-tokenizer-XXXXXX";
    ma_err e = {0};
    golden_need(mkstemp(path) >= 0, path, NULL);
    for (int k = 0; bad[k]; k++) {
        ma_err_clear(&e);
        golden_need(!ma_write_file(path, bad[k], strlen(bad[k]), &e), path, &e);
        ok(!ma_tokenizer_open(path, &e) && strstr(e.text, path), "refused: %s", e.text + strlen(path));
    }
    unlink(path);
    ma_err_clear(&e);
    ok(!ma_tokenizer_open(folder, &e) && e.reason == MA_MISSING && strstr(e.text, "spiece.model"),
       "a folder without one is refused");
}

int main(void) {
    const char *shared = getenv("SHARED");
    char *folder = ma_format("%s/assets/t5", shared ? shared : "../shared");
    char *model = ma_format("%s/spiece.model", folder);
    ma_err e = {0};
    if (access(model, R_OK))
        skip("no assets/t5/spiece.model");
    else {
        ma_tokenizer *t = ma_tokenizer_open(folder, &e);
        golden_need(t, folder, &e);
        ok(ma_tokenizer_size(t) == 32100, "32,000 pieces and 100 sentinels");
        ma_weights *fixture = golden_open("tests/golden/tokenizer.safetensors");
        check_lines(fixture, t);
        ma_weights_close(fixture);
        check_text(t, "a zero byte", "a\0b", 3, (const int32_t[]){3, 9, 2, 115, 1}, 5);
        check_text(t, "no text", "", 0, (const int32_t[]){1, 0}, 1);
        int32_t one = 7;
        ok(ma_tokenize(t, "word word", 9, &one, 1, &e) > 1 && one == 1, "cut to one token: the end");
        ok(ma_tokenize(t, "\xff\xc3(", 3, &one, 1, &e) > 1, "bytes that are not UTF-8 are tokens, too");
        ok(ma_tokenize(t, "", 0, &one, 0, &e) < 0 && e.reason == MA_USAGE, "refused: %s", e.text);
        ma_tokenizer_free(t);
    }
    check_refused("/tmp");
    free(model);
    free(folder);
    return tap_done();
}
