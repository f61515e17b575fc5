/* pth: PyTorch's checkpoints, the zip form and the older run of pickles.
 *
 * A pickle is a program for a stack machine. This one runs only what makes data: numbers, text, tuples, lists,
 * dictionaries, and the calls that rebuild a tensor. Every other call makes an opaque value; nothing is imported or
 * executed. An opaque value is an error only where a tensor that is asked for was made from it.
 *
 * Limits: pickles up to 16 MB (a tensor takes about 100 bytes of it); zip records stored, not compressed (as torch
 * writes them), CRCs not verified; tensors that repeat elements (stride 0), sparse, quantised and complex ones refused.
 * One level of dictionary is read.
 * Traps: values may refer to themselves, so nothing here recurses into them; a memo index can be any 32-bit number; in
 * the old form data are not aligned, and stand in the order of a list of keys behind the pickle; one storage can belong
 * to many tensors, with offset and stride;
 * a dimension of one element may have any stride. */
#include "weights_private.h"

#include <stdlib.h>
#include <string.h>

/* ---- values ---- */

typedef struct text {
    const char *s; /* in the mapping: no 0 at the end */
    size_t n;
} text;

typedef enum { V_OPAQUE, V_INT, V_TEXT, V_GLOBAL, V_TUPLE, V_LIST, V_DICT, V_STORAGE, V_TENSOR } kind;

typedef struct value {
    struct value *next; /* of all, for freeing */
    kind kind;
    bool holds;   /* a tensor or a storage is in it, or went into its making */
    ma_type type; /* of a storage */
    union {
        int64_t integer; /* booleans too */
        text text;
        struct {
            text module, name;
        } global; /* also of what an opaque value was made by */
        struct {
            struct value **at; /* a dictionary: key, value, key, value, … */
            size_t n, room;
        } list;
        struct {
            text key;
            int64_t count; /* elements */
        } storage;
        struct {
            struct value *storage, *size, *stride; /* two tuples */
            int64_t offset;
        } tensor;
    };
} value;

static bool text_is(text t, const char *s) {
    return t.n == strlen(s) && !memcmp(t.s, s, t.n);
}

/* How much of it goes into a message. */
static int shown(text t) {
    return t.n < 200 ? (int)t.n : 200;
}

static int text_order(text a, text b) {
    int order = memcmp(a.s, b.s, a.n < b.n ? a.n : b.n);
    return order ? order : (a.n > b.n) - (a.n < b.n);
}

static bool global_is(const value *v, const char *module, const char *name) {
    return v->kind == V_GLOBAL && text_is(v->global.module, module) && text_is(v->global.name, name);
}

static const value *dict_find(const value *d, const char *key) {
    for (size_t i = 0; i < d->list.n; i += 2) {
        const value *k = d->list.at[i];
        if (k->kind == V_TEXT && text_is(k->text, key)) return d->list.at[i + 1];
    }
    return NULL;
}

/* ---- the machine ---- */

typedef struct machine {
    const char *path;
    ma_err *err;
    const unsigned char *at, *end; /* the program */
    size_t most;                   /* its bytes: no memo index and no stack can be larger */
    value **stack, **memo;
    size_t n, room, memo_room, memo_n;
    size_t *marks, nmarks, marks_room;
    value *all;
} machine;

static int broken(machine *m, const char *what) {
    return ma_fail(m->err, MA_CORRUPT, "%s: pickle: %s", m->path, what);
}

static int no_memory(machine *m) {
    return ma_fail(m->err, MA_MEMORY, "%s: out of memory", m->path);
}

static void machine_free(machine *m) {
    while (m->all) {
        value *v = m->all;
        m->all = v->next;
        if (v->kind == V_TUPLE || v->kind == V_LIST || v->kind == V_DICT) free(v->list.at);
        free(v);
    }
    free(m->stack);
    free(m->memo);
    free(m->marks);
}

/* The next n bytes of the program. */
static const unsigned char *take(machine *m, uint64_t n) {
    if (n > (size_t)(m->end - m->at)) {
        ma_fail(m->err, MA_CUT, "%s: ends inside a pickle (or it is larger than 16 MB)", m->path);
        return NULL;
    }
    const unsigned char *at = m->at;
    m->at += n;
    return at;
}

static uint64_t little(const unsigned char *p, int n) {
    uint64_t v = 0;
    while (n-- > 0) v = v << 8 | p[n];
    return v;
}

/* An n-byte number of the program. */
static int take_number(machine *m, int n, uint64_t *out) {
    const unsigned char *p = take(m, (uint64_t)n);
    if (!p) return -1;
    *out = little(p, n);
    return 0;
}

/* Up to the end of the line, which is left out. */
static int take_line(machine *m, text *out) {
    const unsigned char *end = memchr(m->at, '\n', (size_t)(m->end - m->at));
    const unsigned char *p = take(m, end ? (uint64_t)(end + 1 - m->at) : UINT64_MAX);
    if (!p) return -1;
    *out = (text){(const char *)p, (size_t)(end - p)};
    return 0;
}

static value *make(machine *m, kind k) {
    value *v = calloc(1, sizeof *v);
    if (!v) {
        no_memory(m);
        return NULL;
    }
    v->kind = k;
    v->next = m->all;
    return m->all = v;
}

/* Room for number n of an array that doubles. */
static void *grown(void *p, size_t *room, size_t n, size_t size) {
    if (n < *room) return p;
    size_t more = n < 16 ? 32 : 2 * n;
    void *q = realloc(p, more * size); /* n is at most the bytes of a pickle */
    if (!q) return NULL;
    memset((char *)q + *room * size, 0, (more - *room) * size);
    *room = more;
    return q;
}

static int push(machine *m, value *v) {
    if (!v) return -1;
    value **stack = grown(m->stack, &m->room, m->n, sizeof *stack);
    if (!stack) return no_memory(m);
    m->stack = stack;
    stack[m->n++] = v;
    return 0;
}

static int push_int(machine *m, int64_t i) {
    value *v = make(m, V_INT);
    if (v) v->integer = i;
    return push(m, v);
}

/* The top of the stack, above the last mark. NULL: there is none. */
static value *top(machine *m) {
    if (m->n > (m->nmarks ? m->marks[m->nmarks - 1] : 0)) return m->stack[m->n - 1];
    broken(m, "the stack is empty");
    return NULL;
}

static value *pop(machine *m) {
    value *v = top(m);
    m->n -= v != NULL;
    return v;
}

static int mark(machine *m) {
    size_t *marks = grown(m->marks, &m->marks_room, m->nmarks, sizeof *marks);
    if (!marks) return no_memory(m);
    m->marks = marks;
    marks[m->nmarks++] = m->n;
    return 0;
}

/* Takes off what stands above the last mark. The slice is valid until the next push. */
static int pop_mark(machine *m, value ***at, size_t *n) {
    if (!m->nmarks) return broken(m, "no mark on the stack");
    size_t from = m->marks[--m->nmarks];
    *at = m->stack + from;
    *n = m->n - from;
    m->n = from;
    return 0;
}

/* ---- containers ---- */

static int append(machine *m, value *list, value *const *at, size_t n) {
    for (size_t i = 0; i < n; i++) {
        list->holds |= at[i]->holds;
        if (list->kind == V_OPAQUE) continue; /* a container we do not know: only whether it holds tensors */
        value **items = grown(list->list.at, &list->list.room, list->list.n, sizeof *items);
        if (!items) return no_memory(m);
        list->list.at = items;
        items[list->list.n++] = at[i];
    }
    return 0;
}

static int push_tuple(machine *m, value **at, size_t n) {
    value *v = make(m, V_TUPLE);
    return v && !append(m, v, at, n) ? push(m, v) : -1;
}

/* A tuple of the n topmost values. */
static int tuple_of(machine *m, size_t n) {
    value *items[3];
    for (size_t i = n; i-- > 0;)
        if (!(items[i] = pop(m))) return -1;
    return push_tuple(m, items, n);
}

static int tuple_of_mark(machine *m) {
    value **at = NULL;
    size_t n = 0;
    return pop_mark(m, &at, &n) ? -1 : push_tuple(m, at, n);
}

/* Puts the values into the container now on top: pairs into a dictionary, items into a list. */
static int extend(machine *m, kind k, value *const *at, size_t n) {
    value *v = top(m);
    if (!v) return -1;
    if (v->kind != k && v->kind != V_OPAQUE) return broken(m, "items for something that is no container");
    if (k == V_DICT && n % 2) return broken(m, "a key without a value");
    return append(m, v, at, n);
}

static int extend_by(machine *m, kind k, size_t n) {
    value *items[2];
    for (size_t i = n; i-- > 0;)
        if (!(items[i] = pop(m))) return -1;
    return extend(m, k, items, n);
}

static int extend_by_mark(machine *m, kind k) {
    value **at = NULL;
    size_t n = 0;
    return pop_mark(m, &at, &n) ? -1 : extend(m, k, at, n);
}

/* ---- memo ---- */

static int memo_put(machine *m, uint64_t i) {
    value *v = top(m);
    if (!v) return -1;
    if (i >= m->most) return broken(m, "a memo index that no pickler gives");
    value **memo = grown(m->memo, &m->memo_room, (size_t)i, sizeof *memo);
    if (!memo) return no_memory(m);
    m->memo = memo;
    m->memo_n += !memo[i];
    memo[i] = v;
    return 0;
}

static int memo_put_at(machine *m, int bytes) {
    uint64_t i;
    return take_number(m, bytes, &i) ? -1 : memo_put(m, i);
}

static int memo_get(machine *m, int bytes) {
    uint64_t i;
    if (take_number(m, bytes, &i)) return -1;
    if (i >= m->memo_room || !m->memo[i]) return broken(m, "a memo entry that was never made");
    return push(m, m->memo[i]);
}

/* ---- scalars ---- */

static int unsigned_number(machine *m, int bytes) {
    uint64_t i;
    return take_number(m, bytes, &i) ? -1 : push_int(m, (int64_t)i);
}

static int signed_number(machine *m) {
    uint64_t i;
    return take_number(m, 4, &i) ? -1 : push_int(m, (int32_t)(uint32_t)i);
}

/* A two's complement number of any length; more than 64 bits are of no use to us. */
static int long_number(machine *m, int length_bytes) {
    uint64_t n;
    const unsigned char *p;
    if (take_number(m, length_bytes, &n) || !(p = take(m, n))) return -1;
    if (n > 8) return push(m, make(m, V_OPAQUE));
    uint64_t i = little(p, (int)n);
    if (n > 0 && n < 8 && p[n - 1] & 0x80) i |= UINT64_MAX << (8 * n);
    return push_int(m, (int64_t)i);
}

/* Text or bytes behind a length. */
static int push_text(machine *m, int length_bytes) {
    uint64_t n;
    const unsigned char *p;
    if (take_number(m, length_bytes, &n) || !(p = take(m, n))) return -1;
    value *v = make(m, V_TEXT);
    if (v) v->text = (text){(const char *)p, (size_t)n};
    return push(m, v);
}

static int skip_and_push(machine *m, uint64_t n) {
    return take(m, n) ? push(m, make(m, V_OPAQUE)) : -1;
}

/* ---- calls ---- */

static int push_global(machine *m, text module, text name) {
    value *v = make(m, V_GLOBAL);
    if (v) {
        v->global.module = module;
        v->global.name = name;
    }
    return push(m, v);
}

static int global(machine *m) {
    text module, name;
    return take_line(m, &module) || take_line(m, &name) ? -1 : push_global(m, module, name);
}

static int stack_global(machine *m) {
    value *name = pop(m), *module = name ? pop(m) : NULL;
    if (!module) return -1;
    if (module->kind != V_TEXT || name->kind != V_TEXT) return broken(m, "a global without a name");
    return push_global(m, module->text, name->text);
}

/* What a call of f makes that we do not know: nothing, but it remembers whether a tensor was in it. */
static value *opaque(machine *m, const value *f, bool holds) {
    value *v = make(m, V_OPAQUE);
    if (!v) return NULL;
    v->holds = holds;
    if (f->kind == V_GLOBAL) {
        v->global = f->global;
        const char *s = f->global.name.s;
        size_t n = f->global.name.n;
        v->holds |= (n > 8 && !memcmp(s, "_rebuild", 8)) || text_is(f->global.name, "_load_from_bytes");
    }
    return v;
}

/* torch's storage classes by element type. False: another one. */
static bool storage_type(const value *v, ma_type *type) {
    static const char *const names[MA_TYPES] = {
        [MA_F32] = "FloatStorage", [MA_F16] = "HalfStorage",  [MA_BF16] = "BFloat16Storage", [MA_F64] = "DoubleStorage",
        [MA_I64] = "LongStorage",  [MA_I32] = "IntStorage",   [MA_I16] = "ShortStorage",     [MA_I8] = "CharStorage",
        [MA_U8] = "ByteStorage",   [MA_BOOL] = "BoolStorage", [MA_U16] = "UInt16Storage"};
    for (int t = 0; t < MA_TYPES; t++)
        if (global_is(v, "torch", names[t])) {
            *type = (ma_type)t;
            return true;
        }
    return false;
}

/* ("storage", torch.FloatStorage, key, device, elements[, None]) → a storage. */
static int persistent(machine *m) {
    value *id = pop(m), *v = id ? make(m, V_OPAQUE) : NULL;
    if (!v) return -1;
    v->holds = true;
    value **at = id->kind == V_TUPLE ? id->list.at : NULL;
    size_t n = at ? id->list.n : 0;
    ma_type type;
    if (n < 5 || n > 6 || at[0]->kind != V_TEXT || !text_is(at[0]->text, "storage") || !storage_type(at[1], &type) ||
        at[2]->kind != V_TEXT || at[4]->kind != V_INT || at[4]->integer < 0 || (n == 6 && at[5]->kind != V_OPAQUE))
        return push(m, v); /* a type we do not read, or a view as of 2017 */
    v->kind = V_STORAGE;
    v->type = type;
    v->storage.key = at[2]->text;
    v->storage.count = at[4]->integer;
    return push(m, v);
}

/* (storage, offset, size, stride, …) → a tensor; NULL where the arguments are others. */
static value *tensor(machine *m, const value *args, bool *failed) {
    value **at = args->list.at;
    size_t n = args->list.n;
    if (n < 4 || n > 7 || at[0]->kind != V_STORAGE || at[1]->kind != V_INT || at[2]->kind != V_TUPLE ||
        at[3]->kind != V_TUPLE)
        return NULL;
    if (n == 7 && at[6]->kind == V_DICT && at[6]->list.n) return NULL; /* conjugate or negative bits */
    value *v = make(m, V_TENSOR);
    *failed = !v;
    if (!v) return NULL;
    v->holds = true;
    v->tensor.storage = at[0];
    v->tensor.offset = at[1]->integer;
    v->tensor.size = at[2];
    v->tensor.stride = at[3];
    return v;
}

static int call(machine *m) {
    value *args = pop(m), *f = args ? pop(m) : NULL, *v = NULL;
    if (!f) return -1;
    if (args->kind != V_TUPLE) return broken(m, "a call without a tuple of arguments");
    bool failed = false;
    if (global_is(f, "collections", "OrderedDict") && !args->list.n) return push(m, make(m, V_DICT));
    if (global_is(f, "torch._utils", "_rebuild_tensor_v2") || global_is(f, "torch._utils", "_rebuild_tensor"))
        v = tensor(m, args, &failed);
    else if (args->list.n &&
             (global_is(f, "torch._utils", "_rebuild_parameter") ||
              global_is(f, "torch._utils", "_rebuild_parameter_with_state")) &&
             args->list.at[0]->kind == V_TENSOR)
        v = args->list.at[0];
    return failed ? -1 : push(m, v ? v : opaque(m, f, args->holds));
}

/* obj.__setstate__(state): for us, only whether a tensor went into something we do not know. */
static int build(machine *m) {
    value *state = pop(m), *v = state ? top(m) : NULL;
    if (!v) return -1;
    if (v->kind == V_OPAQUE) v->holds |= state->holds;
    return 0;
}

/* ---- running ---- */

static int pop_only(machine *m) {
    return pop(m) ? 0 : -1;
}

static int take_only(machine *m, uint64_t n) {
    return take(m, n) ? 0 : -1;
}

static int drop_mark(machine *m) {
    value **at = NULL;
    size_t n = 0;
    return pop_mark(m, &at, &n);
}

/* One opcode; the letters are those of Python's pickletools. */
static int step(machine *m, unsigned char op) {
    switch (op) {
    case 0x80: return take_only(m, 1);           /* PROTO */
    case 0x95: return take_only(m, 8);           /* FRAME */
    case '(': return mark(m);                    /* MARK */
    case '0': return pop_only(m);                /* POP */
    case '1': return drop_mark(m);               /* POP_MARK */
    case 'N': return push(m, make(m, V_OPAQUE)); /* NONE */
    case 0x88: return push_int(m, 1);            /* NEWTRUE */
    case 0x89: return push_int(m, 0);            /* NEWFALSE */
    case 'J': return signed_number(m);           /* BININT */
    case 'K': return unsigned_number(m, 1);      /* BININT1 */
    case 'M': return unsigned_number(m, 2);      /* BININT2 */
    case 0x8a: return long_number(m, 1);         /* LONG1 */
    case 0x8b: return long_number(m, 4);         /* LONG4 */
    case 'G': return skip_and_push(m, 8);        /* BINFLOAT */
    case 'U':
    case 'C':
    case 0x8c: return push_text(m, 1); /* SHORT_BINSTRING, SHORT_BINBYTES, SHORT_BINUNICODE */
    case 'T':
    case 'B':
    case 'X': return push_text(m, 4); /* BINSTRING, BINBYTES, BINUNICODE */
    case 0x8d:
    case 0x8e:
    case 0x96: return push_text(m, 8);            /* BINUNICODE8, BINBYTES8, BYTEARRAY8 */
    case ')': return push(m, make(m, V_TUPLE));   /* EMPTY_TUPLE */
    case ']': return push(m, make(m, V_LIST));    /* EMPTY_LIST */
    case '}': return push(m, make(m, V_DICT));    /* EMPTY_DICT */
    case 0x8f: return push(m, make(m, V_OPAQUE)); /* EMPTY_SET */
    case 0x85: return tuple_of(m, 1);             /* TUPLE1 */
    case 0x86: return tuple_of(m, 2);             /* TUPLE2 */
    case 0x87: return tuple_of(m, 3);             /* TUPLE3 */
    case 't': return tuple_of_mark(m);            /* TUPLE */
    case 'a': return extend_by(m, V_LIST, 1);     /* APPEND */
    case 'e':
    case 0x90: return extend_by_mark(m, V_LIST); /* APPENDS, ADDITEMS */
    case 's': return extend_by(m, V_DICT, 2);    /* SETITEM */
    case 'u': return extend_by_mark(m, V_DICT);  /* SETITEMS */
    case 0x94: return memo_put(m, m->memo_n);    /* MEMOIZE */
    case 'q': return memo_put_at(m, 1);          /* BINPUT */
    case 'r': return memo_put_at(m, 4);          /* LONG_BINPUT */
    case 'h': return memo_get(m, 1);             /* BINGET */
    case 'j': return memo_get(m, 4);             /* LONG_BINGET */
    case 'c': return global(m);                  /* GLOBAL */
    case 0x93: return stack_global(m);           /* STACK_GLOBAL */
    case 'Q': return persistent(m);              /* BINPERSID */
    case 'R':
    case 0x81: return call(m); /* REDUCE, NEWOBJ */
    case 'b': return build(m); /* BUILD */
    default: return ma_fail(m->err, MA_UNSUPPORTED, "%s: pickle: opcode 0x%02x is not supported", m->path, op);
    }
}

/* Runs the pickle at *at up to its STOP; *at is then behind it. NULL: failed. The value lives as long as m. */
static value *run(machine *m, const char *path, const unsigned char **at, const unsigned char *end, ma_err *err) {
    size_t most = (size_t)(end - *at);
    if (most > MA_PICKLE_MOST) most = MA_PICKLE_MOST;
    *m = (machine){.path = path, .err = err, .at = *at, .end = *at + most, .most = most};
    for (;;) {
        const unsigned char *op = take(m, 1);
        if (!op) return NULL;
        if (*op == '.') break;
        if (step(m, *op)) return NULL;
    }
    *at = m->at;
    return pop(m);
}

/* ---- storages ---- */

/* A named run of bytes: a zip's record, or a storage of the old form. */
typedef struct record {
    text name;
    const unsigned char *data;
    size_t size;
    bool compressed;
} record;

typedef struct records {
    record *at; /* by name */
    size_t n;
} records;

static int record_order(const void *a, const void *b) {
    return text_order(((const record *)a)->name, ((const record *)b)->name);
}

static const record *record_find(const records *r, text name) {
    record key = {.name = name};
    return r->n ? bsearch(&key, r->at, r->n, sizeof key, record_order) : NULL;
}

static int sort_records(const char *path, records *r, ma_err *err) {
    if (r->n > 1) qsort(r->at, r->n, sizeof *r->at, record_order);
    for (size_t i = 1; i < r->n; i++)
        if (!text_order(r->at[i - 1].name, r->at[i].name))
            return ma_fail(err, MA_DUPLICATE, "%s: the record %.*s is there twice", path, shown(r->at[i].name),
                           r->at[i].name.s);
    return 0;
}

/* ---- from tensors to entries ---- */

/* Sizes and strides of t. A dimension of one element gets stride 0. */
static int read_sizes(const char *path, const value *t, ma_entry *e, ma_err *err) {
    const value *size = t->tensor.size, *stride = t->tensor.stride;
    if (size->list.n != stride->list.n)
        return ma_fail(err, MA_CORRUPT, "%s: %s: as many strides as sizes must be there", path, e->name);
    if (size->list.n > MA_MAX_DIMS)
        return ma_fail(err, MA_UNSUPPORTED, "%s: %s has more than %d dimensions", path, e->name, MA_MAX_DIMS);
    e->nd = (int)size->list.n;
    for (int d = 0; d < e->nd; d++) {
        const value *n = size->list.at[d], *s = stride->list.at[d];
        if (n->kind != V_INT || s->kind != V_INT || n->integer < 0 || s->integer < 0)
            return ma_fail(err, MA_CORRUPT, "%s: %s: malformed sizes", path, e->name);
        e->n[d] = n->integer;
    }
    size_t bytes;
    if (ma_entry_dense(path, e, &bytes, err)) return -1; /* for its checks; the strides are the tensor's */
    for (int d = 0; d < e->nd; d++) e->stride[d] = e->n[d] == 1 ? 0 : stride->list.at[d]->integer;
    return 0;
}

/* The last element stands inside the storage, and there are no more elements than it has. */
static int check_bounds(const char *path, const value *t, const ma_entry *e, ma_err *err) {
    size_t count = ma_entry_count(e), room = (size_t)t->tensor.storage->storage.count, last, span;
    bool inside = t->tensor.offset >= 0 && (size_t)t->tensor.offset <= room;
    last = inside ? (size_t)t->tensor.offset : 0;
    for (int d = 0; d < e->nd && inside && count; d++)
        inside = ma_mul((size_t)e->stride[d], (size_t)e->n[d] - 1, &span) && ma_sum(last, span, &last);
    if (!inside || (count && last >= room))
        return ma_fail(err, MA_CORRUPT, "%s: %s reaches out of its storage", path, e->name);
    if (count > room) return ma_fail(err, MA_UNSUPPORTED, "%s: %s repeats elements of its storage", path, e->name);
    return 0;
}

static int add_tensor(ma_weights *w, int file, text name, const value *t, const records *r, ma_err *err) {
    const char *path = w->files[file].path;
    const value *storage = t->tensor.storage;
    ma_entry *e = ma_weights_add(w, file, name.s, name.n, err);
    if (!e) return -1;
    e->type = storage->type;
    if (read_sizes(path, t, e, err) || check_bounds(path, t, e, err)) return -1;
    const record *data = record_find(r, storage->storage.key);
    if (!data) return ma_fail(err, MA_MISSING, "%s: the data of %s are not there", path, e->name);
    if (data->compressed)
        return ma_fail(err, MA_UNSUPPORTED, "%s: the data of %s are compressed or encrypted", path, e->name);
    size_t bytes;
    if (!ma_mul((size_t)storage->storage.count, ma_type_size(e->type), &bytes) || bytes != data->size)
        return ma_fail(err, MA_CORRUPT, "%s: the data of %s are %zu bytes, not %lld elements", path, e->name,
                       data->size, (long long)storage->storage.count);
    e->data = data->data + (size_t)t->tensor.offset * ma_type_size(e->type);
    return 0;
}

/* The dictionary of tensors: the top one, or the one that stands in it under a customary name. */
static const value *state_of(const value *v) {
    static const char *const names[] = {"module", "model", "state_dict"};
    for (size_t i = 0; i < 3 && v->kind == V_DICT; i++) {
        const value *inner = dict_find(v, names[i]);
        if (inner && inner->kind == V_DICT && inner->holds) return inner;
    }
    return v;
}

static int add_all(ma_weights *w, int file, const value *result, const records *r, ma_err *err) {
    const char *path = w->files[file].path;
    const value *d = state_of(result);
    int before = w->n;
    if (d->kind != V_DICT) return ma_fail(err, MA_UNSUPPORTED, "%s: not a dictionary of tensors", path);
    for (size_t i = 0; i < d->list.n; i += 2) {
        const value *k = d->list.at[i], *v = d->list.at[i + 1];
        if (!v->holds || (v->kind != V_TENSOR && v->kind != V_OPAQUE)) continue; /* not a tensor, and no broken one */
        if (k->kind != V_TEXT) return ma_fail(err, MA_CORRUPT, "%s: a tensor without a name", path);
        if (v->kind == V_OPAQUE)
            return ma_fail(err, MA_UNSUPPORTED, "%s: %.*s was made by %.*s, which is not supported", path,
                           shown(k->text), k->text.s, shown(v->global.name), v->global.name.s ? v->global.name.s : "");
        if (add_tensor(w, file, k->text, v, r, err)) return -1;
    }
    return w->n > before ? 0 : ma_fail(err, MA_UNSUPPORTED, "%s: no dictionary of tensors in it", path);
}

/* ---- the zip form ---- */

/* Where the central directory is. */
typedef struct directory {
    uint64_t count, size, offset;
} directory;

/* The end record, looked for from the end; its zip64 twin where a field is full. */
static int find_directory(const ma_mapped *f, directory *d, ma_err *err) {
    size_t back = 22;
    const unsigned char *p = NULL;
    for (; back <= f->size && back <= 22 + 0xffff; back++) {
        p = f->data + f->size - back;
        if (little(p, 4) == 0x06054b50 && little(p + 20, 2) == back - 22) break;
    }
    if (back > f->size || back > 22 + 0xffff)
        return ma_fail(err, MA_CUT, "%s: a zip file without its end: cut short", f->path);
    *d = (directory){little(p + 10, 2), little(p + 12, 4), little(p + 16, 4)};
    uint64_t limit = f->size - back;
    if (d->count == 0xffff || d->size == 0xffffffff || d->offset == 0xffffffff) {
        if (limit < 20 + 56 || little(p - 20, 4) != 0x07064b50)
            return ma_fail(err, MA_CORRUPT, "%s: zip64 without its end record", f->path);
        uint64_t at = little(p - 12, 8);
        if (at > limit - 20 - 56 || little(f->data + at, 4) != 0x06064b50)
            return ma_fail(err, MA_CORRUPT, "%s: zip64 without its end record", f->path);
        *d = (directory){little(f->data + at + 32, 8), little(f->data + at + 40, 8), little(f->data + at + 48, 8)};
        limit = at;
    }
    if (d->offset > limit || d->size > limit - d->offset || d->count > d->size / 46)
        return ma_fail(err, MA_CORRUPT, "%s: the zip directory reaches out of the file", f->path);
    return 0;
}

/* Fills in the 64-bit values of the extra field 1: those whose 32-bit field is full, in this order. */
static int read_zip64(const unsigned char *extra, size_t n, uint64_t *const full[3]) {
    while (n >= 4) {
        size_t id = (size_t)little(extra, 2), size = (size_t)little(extra + 2, 2);
        extra += 4;
        n -= 4;
        if (size > n) return -1;
        for (int i = 0; i < 3 && id == 1; i++)
            if (*full[i] == 0xffffffff) {
                if (size < 8) return -1;
                *full[i] = little(extra, 8);
                extra += 8;
                n -= 8;
                size -= 8;
            }
        if (id == 1) return 0;
        extra += size;
        n -= size;
    }
    return -1;
}

/* The directory's entry at p, at most left bytes of it, as a record. Returns its length; 0: malformed. */
static size_t read_record(const ma_mapped *f, const directory *d, const unsigned char *p, size_t left, record *r) {
    if (left < 46 || little(p, 4) != 0x02014b50) return 0;
    size_t name = (size_t)little(p + 28, 2), extra = (size_t)little(p + 30, 2), note = (size_t)little(p + 32, 2);
    uint64_t packed = little(p + 20, 4), size = little(p + 24, 4), at = little(p + 42, 4);
    if (left - 46 < name + extra + note) return 0;
    if ((packed == 0xffffffff || size == 0xffffffff || at == 0xffffffff) &&
        read_zip64(p + 46 + name, extra, (uint64_t *const[]){&size, &packed, &at}))
        return 0;
    if (d->offset < 30 || at > d->offset - 30 || little(f->data + at, 4) != 0x04034b50) return 0;
    uint64_t head = 30 + little(f->data + at + 26, 2) + little(f->data + at + 28, 2), room = d->offset - at;
    if (head > room || packed > room - head) return 0;
    if (little(f->data + at + 26, 2) != name || memcmp(f->data + at + 30, p + 46, name)) return 0;
    bool plain = little(p + 10, 2) == 0 && !(little(p + 8, 2) & 1);
    if (plain && packed != size) return 0;
    *r = (record){{(const char *)p + 46, name}, f->data + at + head, (size_t)size, !plain};
    return 46 + name + extra + note;
}

static int read_directory(const ma_mapped *f, records *r, ma_err *err) {
    directory d = {0};
    if (find_directory(f, &d, err)) return -1;
    if (!(r->at = ma_alloc((size_t)d.count + 1, sizeof *r->at)))
        return ma_fail(err, MA_MEMORY, "%s: out of memory", f->path);
    const unsigned char *p = f->data + d.offset, *end = p + d.size;
    for (; r->n < d.count; r->n++) {
        size_t n = read_record(f, &d, p, (size_t)(end - p), &r->at[r->n]);
        if (!n) return ma_fail(err, MA_CORRUPT, "%s: record %zu of the zip directory is malformed", f->path, r->n);
        p += n;
    }
    return sort_records(f->path, r, err);
}

/* The one record NAME/data.pkl; *prefix is then "NAME/". */
static const record *find_program(const ma_mapped *f, const records *r, text *prefix, ma_err *err) {
    const record *found = NULL;
    for (size_t i = 0; i < r->n; i++) {
        text t = r->at[i].name;
        const char *slash = memchr(t.s, '/', t.n);
        if (!slash || !text_is((text){slash, t.n - (size_t)(slash - t.s)}, "/data.pkl")) continue;
        if (found) {
            ma_fail(err, MA_CORRUPT, "%s: more than one data.pkl", f->path);
            return NULL;
        }
        found = &r->at[i];
        *prefix = (text){t.s, (size_t)(slash + 1 - t.s)};
    }
    if (!found)
        ma_fail(err, MA_MISSING, "%s: a zip file without data.pkl", f->path);
    else if (found->compressed)
        ma_fail(err, MA_UNSUPPORTED, "%s: data.pkl is compressed or encrypted", f->path);
    return found && !found->compressed ? found : NULL;
}

/* What of the name stands behind prefix and rest; .s NULL: it does not begin so. */
static text behind(text name, text prefix, const char *rest) {
    size_t n = strlen(rest);
    if (name.n < prefix.n + n || memcmp(name.s, prefix.s, prefix.n) || memcmp(name.s + prefix.n, rest, n))
        return (text){0};
    return (text){name.s + prefix.n + n, name.n - prefix.n - n};
}

/* Leaves the records NAME/data/KEY, called KEY, and refuses data of the other byte order. */
static int keep_storages(const ma_mapped *f, records *r, text prefix, ma_err *err) {
    size_t n = 0;
    for (size_t i = 0; i < r->n; i++) {
        record x = r->at[i];
        text order = behind(x.name, prefix, "byteorder"), key = behind(x.name, prefix, "data/");
        if (order.s && !order.n && !(x.size == 6 && !x.compressed && !memcmp(x.data, "little", 6)))
            return ma_fail(err, MA_UNSUPPORTED, "%s: not little-endian", f->path);
        if (!key.s) continue;
        x.name = key;
        r->at[n++] = x; /* still sorted: all had the same beginning */
    }
    r->n = n;
    return 0;
}

static int read_zip(ma_weights *w, int file, ma_err *err) {
    const ma_mapped *f = &w->files[file];
    records r = {0};
    machine m = {0};
    text prefix = {0};
    int rc = read_directory(f, &r, err);
    const record *program = rc ? NULL : find_program(f, &r, &prefix, err);
    const unsigned char *at = program ? program->data : NULL, *end = program ? at + program->size : NULL;
    rc = program ? keep_storages(f, &r, prefix, err) : -1;
    const value *result = rc ? NULL : run(&m, f->path, &at, end, err);
    rc = result ? add_all(w, file, result, &r, err) : -1;
    machine_free(&m);
    ma_release(r.at);
    return rc;
}

/* ---- the old form ---- */

static const unsigned char MAGIC[10] = {0x6c, 0xfc, 0x9c, 0x46, 0xf9, 0x20, 0x6a, 0xa8, 0x50, 0x19};

static int storage_order(const void *a, const void *b) {
    return text_order((*(value *const *)a)->storage.key, (*(value *const *)b)->storage.key);
}

/* The storages that a machine has seen, sorted by key; ma_release. */
static value **storages_of(const machine *m, size_t *n) {
    *n = 0;
    for (value *v = m->all; v; v = v->next) *n += v->kind == V_STORAGE;
    value **at = ma_alloc(*n + 1, sizeof *at);
    size_t i = 0;
    for (value *v = m->all; v && at; v = v->next)
        if (v->kind == V_STORAGE) at[i++] = v;
    if (at) qsort(at, *n, sizeof *at, storage_order);
    return at;
}

/* Number i of the data behind the pickles: a 64-bit count of elements, and these. */
static int old_record(const ma_mapped *f, const value *key, value **known, size_t nknown, const unsigned char **at,
                      record *r, ma_err *err) {
    if (key->kind != V_TEXT) return ma_fail(err, MA_CORRUPT, "%s: malformed list of keys", f->path);
    value want = {.storage.key = key->text}, *pointer = &want;
    value **s = bsearch(&pointer, known, nknown, sizeof *known, storage_order);
    if (!s) return ma_fail(err, MA_CORRUPT, "%s: data that belong to no tensor", f->path);
    size_t left = (size_t)(f->data + f->size - *at), bytes;
    if (left < 8) return ma_fail(err, MA_CUT, "%s: ends before its last tensor", f->path);
    if (little(*at, 8) != (uint64_t)(*s)->storage.count ||
        !ma_mul((size_t)(*s)->storage.count, ma_type_size((*s)->type), &bytes))
        return ma_fail(err, MA_CORRUPT, "%s: storage %.*s has another size than said", f->path, shown(key->text),
                       key->text.s);
    if (bytes > left - 8)
        return ma_fail(err, MA_CUT, "%s: ends inside storage %.*s", f->path, shown(key->text), key->text.s);
    *r = (record){key->text, *at + 8, bytes, false};
    *at += 8 + bytes;
    return 0;
}

static int old_records(const ma_mapped *f, const machine *m, const value *keys, const unsigned char *at, records *r,
                       ma_err *err) {
    if (keys->kind != V_LIST) return ma_fail(err, MA_CORRUPT, "%s: no list of keys", f->path);
    size_t nknown;
    value **known = storages_of(m, &nknown);
    r->at = ma_alloc(keys->list.n + 1, sizeof *r->at);
    int rc = known && r->at ? 0 : ma_fail(err, MA_MEMORY, "%s: out of memory", f->path);
    for (; r->n < keys->list.n && !rc; r->n++)
        rc = old_record(f, keys->list.at[r->n], known, nknown, &at, &r->at[r->n], err);
    if (!rc && at != f->data + f->size)
        rc =
            ma_fail(err, MA_CORRUPT, "%s: %zu bytes behind the last tensor", f->path, (size_t)(f->data + f->size - at));
    ma_release(known);
    return rc ? -1 : sort_records(f->path, r, err);
}

/* The run of pickles: a magic number, a version, the machine that wrote it, the object, the keys of its storages. */
static int read_old(ma_weights *w, int file, ma_err *err) {
    enum { NUMBER, VERSION, SYSTEM, OBJECT, KEYS, PICKLES };
    const ma_mapped *f = &w->files[file];
    const unsigned char *at = f->data, *end = at + f->size;
    machine m[PICKLES] = {0};
    const value *v[PICKLES];
    records r = {0};
    int rc = 0;
    for (int i = 0; i < PICKLES && !rc; i++) rc = (v[i] = run(&m[i], f->path, &at, end, err)) ? 0 : -1;
    const value *little_endian = !rc && v[SYSTEM]->kind == V_DICT ? dict_find(v[SYSTEM], "little_endian") : NULL;
    if (!rc && (v[VERSION]->kind != V_INT || v[VERSION]->integer != 1001 || !little_endian ||
                little_endian->kind != V_INT || little_endian->integer != 1))
        rc = ma_fail(err, MA_UNSUPPORTED, "%s: not version 1001, or not little-endian", f->path);
    if (!rc) rc = old_records(f, &m[OBJECT], v[KEYS], at, &r, err);
    if (!rc) rc = add_all(w, file, v[OBJECT], &r, err);
    for (int i = 0; i < PICKLES; i++) machine_free(&m[i]);
    ma_release(r.at);
    return rc;
}

static bool is_zip(const unsigned char *data, size_t size) {
    return size >= 4 && little(data, 4) == 0x04034b50;
}

bool ma_pth_is(const unsigned char *data, size_t size) {
    return is_zip(data, size) || (size && data[0] == 0x80 && memmem(data, size < 32 ? size : 32, MAGIC, sizeof MAGIC));
}

int ma_pth_read(ma_weights *w, int file, ma_err *err) {
    bool zip = is_zip(w->files[file].data, w->files[file].size);
    return zip ? read_zip(w, file, err) : read_old(w, file, err);
}
