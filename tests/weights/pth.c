/* pth: PyTorch's forms of one dictionary of tensors, read alike. */
#include "../tap.h"
#include "values.h"

#include <string.h>

static void check_entry(const char *path, const ma_entry *e, const values *v) {
    float want[24], got[24];
    size_t n = value_fill(v, want);
    bool good = e && e->type == v->type && e->nd == v->nd && !memcmp(e->n, v->n, (size_t)v->nd * sizeof *v->n);
    ok(good, "%s: %s: type and shape", path, v->name);
    ok(good && !ma_entry_read(e, got, NULL) && !memcmp(got, want, n * sizeof *got), "%s: %s: values", path, v->name);
}

int main(void) {
    static const char *const path[] = {"tests/weights/zip.pth", "tests/weights/zip4.pth", "tests/weights/zip64.pth",
                                       "tests/weights/old.pth"};
    char sha[65] = "";
    for (size_t f = 0; f < sizeof path / sizeof *path; f++) {
        ma_err e = {0};
        ma_weights *w = ma_weights_open(path[f], &e);
        if (!ok(w != NULL, "%s opens: %s", path[f], e.text)) continue;
        ok(ma_weights_count(w) == VALUES, "%s: %d tensors", path[f], ma_weights_count(w));
        for (int i = 0; i < VALUES; i++) check_entry(path[f], ma_weights_find(w, VALUE[i].name), &VALUE[i]);
        ok(!ma_weights_find(w, "epoch") && !ma_weights_find(w, "0"), "%s: what is beside the model is left out",
           path[f]);
        if (!f)
            strcpy(sha, ma_weights_sha(w));
        else
            ok(!strcmp(sha, ma_weights_sha(w)), "%s: the same hash", path[f]);
        ma_weights_close(w);
    }
    return tap_done();
}
