/* json: what ma_json_parse refuses beyond cJSON, and where it says the fault is. */
#include "samples.h"

int main(void) {
    static const struct {
        const char *what, *text, *error;
    } t[] = {
        {"an object", "{\"a\": [1, 2.5, \"x\"]} \n", ""},
        {"a number", "1", ""},
        {"the same key in two objects", "[{\"a\": 1}, {\"a\": 2}]", ""},
        {"a key twice", "{\"b\": 1, \"a\": 1, \"b\": 2}", "k.json: the key \"b\" stands twice in one object"},
        {"a key twice, deep", "[0, {\"x\": {\"a\": 1, \"a\": 2}}]", "k.json: the key \"a\" stands twice in one object"},
        {"text behind", "{} {}", "k.json: not JSON, from line 1 column 3 on"},
        {"nothing", "", "k.json: not JSON, from line 1 column 1 on"},
        {"a fault on line 2", "{\"a\":\n  bad}", "k.json: not JSON, from line 2 column 3 on"},
        {"cut in a string", "{\"a\": \"b", "k.json: not JSON"},
        {"cut in a number's place", "{\"a\":", "k.json: not JSON"},
    };
    for (size_t i = 0; i < sizeof t / sizeof *t; i++) {
        size_t n = strlen(t[i].text);
        char *exact = malloc(n + !n);
        memcpy(exact, t[i].text, n);
        ma_err e = {0};
        cJSON *v = ma_json_parse(exact, n, "k.json", &e);
        ok(!v == !!*t[i].error && !strncmp(e.text, t[i].error, strlen(t[i].error)), "%s: %s", t[i].what, e.text);
        cJSON_Delete(v);
        free(exact);
    }
    ma_buf deep = {0};
    for (int i = 0; i < 100000; i++) ma_buf_add(&deep, "[", 1);
    ok(!ma_json_parse(deep.data, deep.size, "k.json", NULL), "100,000 brackets are refused without a crash");
    ma_buf_free(&deep);
    return tap_done();
}
