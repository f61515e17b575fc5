/* safetensors: what is written is read back; shards with an index; folders; what must be said when it is wrong. */
#include "../../common/file.h"
#include "../tap.h"
#include "temp.h"
#include "values.h"

static ma_named of_value(const values *v) {
    float f[24];
    size_t n = value_fill(v, f);
    ma_named a = {.name = v->name};
    ma_type type = v->type == MA_F16 || v->type == MA_BF16 || v->type == MA_F64 ? v->type : MA_F32;
    ma_array_new(&a.a, type, v->nd, v->n, NULL);
    ma_from_f32(a.a.data, f, type, n);
    return a;
}

/* Reads back everything; the file is as its format wants it: aligned, wide types first, then by name. */
static void round_trip(void) {
    ma_named list[VALUES];
    for (int i = 0; i < VALUES; i++) list[i] = of_value(&VALUE[i]);
    ma_err e = {0};
    const char *path = temp_path("all.safetensors");
    ok(!ma_weights_save(path, list, VALUES, (const char *const[]){"step", "7", "say \"é\"", "a\\b\n", NULL}, &e),
       "saved %s", e.text);
    ma_weights *w = ma_weights_open(path, &e);
    if (!ok(w && ma_weights_count(w) == VALUES, "opens: %s", e.text)) exit(tap_done());
    ok(!strcmp(ma_weights_meta(w, "format"), "pt") && !strcmp(ma_weights_meta(w, "step"), "7") &&
           !strcmp(ma_weights_meta(w, "say \"é\""), "a\\b\n") && !ma_weights_meta(w, "none"),
       "metadata");
    for (int i = 0; i < VALUES; i++) {
        const ma_entry *x = ma_weights_find(w, list[i].name);
        size_t bytes = ma_array_bytes(&list[i].a);
        ok(x && x->type == list[i].a.type && x->nd == list[i].a.nd && (uintptr_t)x->data % ma_type_size(x->type) == 0 &&
               !memcmp(x->n, list[i].a.n, (size_t)x->nd * sizeof *x->n) && !memcmp(x->data, list[i].a.data, bytes),
           "%s", list[i].name);
    }
    const char *first = ma_weights_find(w, "double")->data, *then = ma_weights_find(w, "byte")->data;
    const char *last = ma_weights_find(w, "half")->data;
    ok(first < then && then < last && (const char *)ma_weights_find(w, "brain")->data < last, "order in the file");
    ma_weights_close(w);
    for (int i = 0; i < VALUES; i++) ma_array_free(&list[i].a);
}

static void write_text(const char *path, const char *text) {
    ma_write_file(path, text, strlen(text), NULL);
}

/* Opening path must fail for this reason, and say what. */
static void refused(const char *path, ma_reason reason, const char *what) {
    ma_err e = {0};
    ma_weights *w = ma_weights_open(path, &e);
    ok(!w && e.reason == reason && strstr(e.text, what), "refused: %s", e.text);
    ma_weights_close(w);
}

static void index_and_folder(void) {
    float f[6] = {1, 2, 3, 4, 5, 6};
    ma_named a[] = {{"a", {MA_F32, 1, {2}, f}}, {"b", {MA_F32, 1, {4}, f + 2}}}, c = {"c", {MA_F32, 0, {0}, f}};
    ma_err e = {0};
    refused(temp_folder, MA_MISSING, "no weights in this folder");
    ma_weights_save(temp_path("m-00001-of-00002.safetensors"), a, 2, (const char *const[]){"k", "v", NULL}, &e);
    ma_weights_save(temp_path("m-00002-of-00002.safetensors"), &c, 1, NULL, &e);
    const char *index = temp_path("model.safetensors.index.json");
#define A "\"a\":\"m-00001-of-00002.safetensors\""
#define B "\"b\":\"m-00001-of-00002.safetensors\""
#define C "\"c\":\"m-00002-of-00002.safetensors\""
    write_text(index, "{\"metadata\":{\"total_size\":28},\"weight_map\":{" A "," C "," B "}}\n");
    ma_weights *w = ma_weights_open(temp_folder, &e);
    ok(w && ma_weights_count(w) == 3 && ma_weights_find(w, "c") && !strcmp(ma_weights_meta(w, "k"), "v"),
       "a folder with an index %s", e.text);
    char sha[65] = "";
    if (w) strcpy(sha, ma_weights_sha(w));
    ma_weights_close(w);
    write_text(index, "{\"weight_map\":{" A "," C "}}");
    refused(index, MA_CORRUPT, "does not list b");
    write_text(index, "{\"weight_map\":{" A "," C "," B ",\"d\":\"m-00002-of-00002.safetensors\"}}");
    refused(index, MA_MISSING, "d is not in m-00002");
    write_text(index, "{\"weight_map\":{" A "," C ",\"b\":\"m-00002-of-00002.safetensors\"}}");
    refused(index, MA_CORRUPT, "b is not in m-00002-of-00002.safetensors but in");
    write_text(index, "{\"weight_map\":{" A "," C "," C "," B "}}");
    refused(index, MA_CORRUPT, "twice");
    unlink(index);
    ma_named all[] = {c, a[1], a[0]};
    const char *single = temp_path("model.safetensors");
    ok(!ma_weights_save(single, all, 3, NULL, &e) && (w = ma_weights_open(temp_folder, &e)), "one file %s", e.text);
    ok(!strcmp(sha, ma_weights_sha(w)), "the hash does not depend on the container");
    ma_weights_close(w);
    f[0] = 1.5f;
    ma_weights_save(single, all, 3, NULL, &e);
    w = ma_weights_open(temp_folder, &e);
    ok(strcmp(sha, ma_weights_sha(w)), "but on the values");
    ma_weights_close(w);
}

static void not_finite(void) {
    static float f[100000];
    for (size_t i = 0; i < 100000; i++) f[i] = (float)i;
    const char *path = temp_path("nan.safetensors");
    ma_named a = {"layer.weight", {MA_F32, 1, {100000}, f}};
    f[12345] = NAN;
    f[15000] = INFINITY;
    ma_err e = {0};
    ma_weights_save(path, &a, 1, NULL, &e);
    ma_weights *w = ma_weights_open(path, &e);
    ok(ma_entry_read(ma_weights_at(w, 0), f, &e) && e.reason == MA_NOTFINITE &&
           !strcmp(e.text, "layer.weight: element 12345 is NaN"),
       "%s", e.text);
    ma_weights_close(w);
}

static void bad_arguments(void) {
    float f = 1;
    ma_named twice[] = {{"a", {MA_F32, 0, {0}, &f}}, {"b", {MA_U8, 0, {0}, &f}}, {"a", {MA_U8, 0, {0}, &f}}};
    ma_err e = {0};
    ok(ma_weights_save(temp_path("twice.safetensors"), twice, 3, NULL, &e) && e.reason == MA_DUPLICATE, "%s", e.text);
    ok(access(temp_path("twice.safetensors"), F_OK), "and nothing was written");
    ma_err_clear(&e);
    ok(ma_weights_save("/dev/null/x.safetensors", twice, 1, NULL, &e) && strstr(e.text, "/dev/null"), "%s", e.text);
    refused(temp_path("absent.safetensors"), MA_MISSING, "absent.safetensors");
    ma_err_clear(&e);
    ma_weights *w = NULL;
    ok(!ma_weights_save(temp_path("none.safetensors"), NULL, 0, NULL, &e) &&
           (w = ma_weights_open(temp_path("none.safetensors"), &e)) && !ma_weights_count(w) && !ma_weights_find(w, "a"),
       "no tensors at all %s", e.text);
    ma_weights_close(w);
}

int main(void) {
    temp_make();
    round_trip();
    index_and_folder();
    not_finite();
    bad_arguments();
    return tap_done();
}
