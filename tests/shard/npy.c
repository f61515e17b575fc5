/* npy: what is written reads back; a table of heads that must be refused, and of odd ones that are right. */
#include "samples.h"

/* A .npy of this header text and n bytes of data. */
static ma_buf npy(int version, const char *text, size_t n) {
    static const char zero[4096];
    ma_buf b = {0};
    size_t length = strlen(text);
    char head[12] = {'\x93', 'N', 'U', 'M', 'P', 'Y', (char)version, 0, (char)(length & 255), (char)(length >> 8)};
    ma_buf_add(&b, head, version == 1 ? 10 : 12);
    ma_buf_add(&b, text, length);
    ma_buf_add(&b, zero, n);
    return b;
}

#define D(descr, order, shape) "{'descr': " descr ", 'fortran_order': " order ", 'shape': " shape ", }   \n"

static void table(void) {
    static const struct {
        const char *what;
        int version;
        const char *text;
        size_t n;
        ma_reason why;
    } t[] = {
        {"plain", 1, D("'<f4'", "False", "(2, 3)"), 24, MA_OK},
        {"version 2.0", 2, D("'<f2'", "False", "(2, 3)"), 12, MA_OK},
        {"version 3.0", 3, D("'<i8'", "False", "(1,)"), 8, MA_OK},
        {"rank 0", 1, D("'<f8'", "False", "()"), 8, MA_OK},
        {"an empty array", 1, D("'<f8'", "False", "(0, 7)"), 0, MA_OK},
        {"rank 8", 1, D("'|u1'", "False", "(1,1,1,1,1,1,1,2)"), 2, MA_OK},
        {"Fortran order where it is none", 1, D("'|b1'", "True", "(5,)"), 5, MA_OK},
        {"double quotes, other order, no last comma", 1, "{\"shape\":(2,),\"descr\":\"<u2\",\"fortran_order\":False}",
         4, MA_OK},
        {"too few bytes", 1, D("'<f4'", "False", "(2, 3)"), 23, MA_CUT},
        {"too many bytes", 1, D("'<f4'", "False", "(2, 3)"), 25, MA_CORRUPT},
        {"bytes behind an empty array", 1, D("'<f4'", "False", "(0,)"), 1, MA_CORRUPT},
        {"version 4", 4, D("'<f4'", "False", "(1,)"), 4, MA_UNSUPPORTED},
        {"big-endian", 1, D("'>f4'", "False", "(1,)"), 4, MA_UNSUPPORTED},
        {"objects", 1, D("'|O'", "False", "(1,)"), 8, MA_UNSUPPORTED},
        {"a structure", 1, D("[('a', '<f4')]", "False", "(1,)"), 4, MA_UNSUPPORTED},
        {"complex", 1, D("'<c8'", "False", "(1,)"), 8, MA_UNSUPPORTED},
        {"strings", 1, D("'<U4'", "False", "(1,)"), 16, MA_UNSUPPORTED},
        {"Fortran order", 1, D("'<f4'", "True", "(2, 3)"), 24, MA_UNSUPPORTED},
        {"rank 9", 1, D("'|u1'", "False", "(1,1,1,1,1,1,1,1,1)"), 1, MA_UNSUPPORTED},
        {"product overflows", 1, D("'<f8'", "False", "(4294967296, 4294967296)"), 0, MA_SHAPE},
        {"product overflows to the true length", 1, D("'<f8'", "False", "(576460752303423488, 32)"), 0, MA_SHAPE},
        {"overflow behind a zero", 1, D("'<f8'", "False", "(0, 4294967296, 4294967296)"), 0, MA_SHAPE},
        {"a number of 19 digits", 1, D("'|u1'", "False", "(9223372036854775807,)"), 0, MA_CORRUPT},
        {"a negative size", 1, D("'|u1'", "False", "(-1,)"), 0, MA_CORRUPT},
        {"leading zero", 1, D("'|u1'", "False", "(01,)"), 1, MA_CORRUPT},
        {"a number, no tuple", 1, D("'|u1'", "False", "(1)"), 1, MA_CORRUPT},
        {"a list", 1, D("'|u1'", "False", "[1]"), 1, MA_CORRUPT},
        {"a comma too many", 1, D("'|u1'", "False", "(1,,)"), 1, MA_CORRUPT},
        {"a lonely comma", 1, D("'|u1'", "False", "(,)"), 1, MA_CORRUPT},
        {"a comma too few", 1, D("'|u1'", "False", "(1 1)"), 1, MA_CORRUPT},
        {"no comma between keys", 1, "{'descr': '<f4' 'fortran_order': False, 'shape': (1,)}", 4, MA_CORRUPT},
        {"fortran_order is a number", 1, D("'|u1'", "0", "(1,)"), 1, MA_CORRUPT},
        {"a key is missing", 1, "{'descr': '<f4', 'shape': (1,)}", 4, MA_CORRUPT},
        {"a key twice", 1, "{'descr': '<f4', 'descr': '<f4', 'fortran_order': False, 'shape': (1,)}", 4, MA_CORRUPT},
        {"an unknown key", 1, "{'descr': '<f4', 'fortran_order': False, 'shape': (1,), 'x': 1}", 4, MA_CORRUPT},
        {"text behind", 1, D("'<f4'", "False", "(1,)") "import os", 4, MA_CORRUPT},
        {"a call", 1, D("'<f4'", "False", "tuple(1)"), 4, MA_CORRUPT},
        {"no dictionary", 1, "[]", 4, MA_CORRUPT},
        {"an open string", 1, "{'descr", 4, MA_CORRUPT},
        {"an open dictionary", 1, "{", 4, MA_CORRUPT},
        {"nothing", 1, "", 4, MA_CORRUPT},
    };
    for (size_t i = 0; i < sizeof t / sizeof *t; i++) {
        ma_buf b = npy(t[i].version, t[i].text, t[i].n);
        char *exact = malloc(b.size); /* so that a read behind the end is seen */
        memcpy(exact, b.data, b.size);
        ma_array a;
        ma_err e = {0};
        int rc = ma_npy_read(exact, b.size, &a, "k.npy", &e);
        bool good = e.reason == t[i].why && (rc == 0) == !t[i].why && (!rc || !strncmp(e.text, "k.npy: ", 7));
        ok(good, "%s: %s", t[i].what, rc ? e.text : "read");
        if (!rc) ma_array_free(&a);
        free(exact);
        ma_buf_free(&b);
    }
}

/* Every prefix of a good file is refused, in memory that ends where it does. */
static void prefixes(void) {
    ma_buf b = npy(2, D("'<f4'", "False", "(2, 3)"), 24);
    int wrong = 0;
    for (size_t n = 0; n < b.size; n++) {
        char *exact = malloc(n + !n);
        memcpy(exact, b.data, n);
        ma_array a;
        wrong += ma_npy_view(exact, n, &a, "k.npy", NULL) == 0;
        free(exact);
    }
    ma_buf_free(&b);
    ok(!wrong, "no prefix of a good file is taken");
}

static void round_trip(void) {
    static const ma_type types[] = {MA_F32, MA_F16, MA_F64, MA_I64, MA_I32, MA_I16, MA_I8, MA_U8, MA_U16, MA_BOOL};
    static const int64_t shapes[][MA_MAX_DIMS] = {{0}, {5}, {2, 3}, {1, 2, 3, 4, 1, 1, 1, 1}, {3, 0, 2}};
    static const int ranks[] = {0, 1, 2, 8, 3};
    int wrong = 0;
    for (size_t i = 0; i < sizeof types / sizeof *types; i++)
        for (size_t k = 0; k < sizeof ranks / sizeof *ranks; k++) {
            ma_array a, c = {0};
            ma_buf b = {0};
            ma_array_new(&a, types[i], ranks[k], shapes[k], NULL);
            if (ma_array_bytes(&a)) memset(a.data, 1, ma_array_bytes(&a));
            wrong += ma_npy_write(&a, &b, NULL) || ma_npy_read(b.data, b.size, &c, "x", NULL) || c.type != a.type ||
                     c.nd != a.nd || memcmp(c.n, a.n, sizeof(int64_t) * (size_t)a.nd) ||
                     (b.size - ma_array_bytes(&a)) % 64 ||
                     (ma_array_bytes(&a) && memcmp(a.data, c.data, ma_array_bytes(&a)));
            ma_array_free(&a);
            ma_array_free(&c);
            ma_buf_free(&b);
        }
    ok(!wrong, "every type and rank reads back; the data begin at a multiple of 64");
    ma_buf b = {0};
    ma_err e = {0};
    ok(ma_npy_write(&(ma_array){.type = MA_BF16}, &b, &e) && e.reason == MA_UNSUPPORTED && !b.size, "%s", e.text);
}

int main(void) {
    table();
    prefixes();
    round_trip();
    return tap_done();
}
