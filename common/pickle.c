/* pickle: the stack machine whose programs are pickles, as far as checkpoints need it. It runs only what makes data:
 * numbers, text, tuples, lists, dictionaries, and the calls that rebuild a tensor. Every other call makes an opaque
 * value; nothing is imported or executed. An opaque value is an error only where a tensor that is asked for was made
 * from it.
 *
 * Limits: pickles up to 16 MB (a tensor takes about 100 bytes of it).
 * Traps: values may refer to themselves, so nothing here recurses into them; a memo index can be any 32-bit number. */
#include "pickle.h"

#include <stdlib.h>
#include <string.h>

enum { MOST = 16 << 20 }; /* bytes of a pickle that are read at all */

/* ---- values ---- */

bool ma_text_is(ma_text t, const char *s) {
    return t.n == strlen(s) && !memcmp(t.s, s, t.n);
}

int ma_text_shown(ma_text t) {
    return t.n < 200 ? (int)t.n : 200;
}

int ma_text_order(ma_text a, ma_text b) {
    int order = memcmp(a.s, b.s, a.n < b.n ? a.n : b.n);
    return order ? order : (a.n > b.n) - (a.n < b.n);
}

const ma_value *ma_value_find(const ma_value *d, const char *key) {
    for (size_t i = 0; i < d->list.n; i += 2) {
        const ma_value *k = d->list.at[i];
        if (k->kind == V_TEXT && ma_text_is(k->text, key)) return d->list.at[i + 1];
    }
    return NULL;
}

static bool global_is(const ma_value *v, const char *module, const char *name) {
    return v->kind == V_GLOBAL && ma_text_is(v->global.module, module) && ma_text_is(v->global.name, name);
}

/* ---- the machine ---- */

typedef struct machine {
    const char *path;
    ma_err *err;
    const unsigned char *at, *end; /* the program */
    size_t most;                   /* its bytes: no memo index and no stack can be larger */
    ma_value **stack, **memo;
    size_t n, room, memo_room, memo_n;
    size_t *marks, nmarks, marks_room;
    ma_value **all;
} machine;

static int broken(machine *m, const char *what) {
    return ma_fail(m->err, MA_CORRUPT, "%s: pickle: %s", m->path, what);
}

static int no_memory(machine *m) {
    return ma_fail(m->err, MA_MEMORY, "%s: out of memory", m->path);
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

/* An n-byte number of the program. */
static int take_number(machine *m, int n, uint64_t *out) {
    const unsigned char *p = take(m, (uint64_t)n);
    if (!p) return -1;
    *out = ma_little(p, n);
    return 0;
}

/* Up to the end of the line, which is left out. */
static int take_line(machine *m, ma_text *out) {
    const unsigned char *end = memchr(m->at, '\n', (size_t)(m->end - m->at));
    const unsigned char *p = take(m, end ? (uint64_t)(end + 1 - m->at) : UINT64_MAX);
    if (!p) return -1;
    *out = (ma_text){(const char *)p, (size_t)(end - p)};
    return 0;
}

static ma_value *make(machine *m, ma_value_kind k) {
    ma_value *v = calloc(1, sizeof *v);
    if (!v) {
        no_memory(m);
        return NULL;
    }
    v->kind = k;
    v->next = *m->all;
    return *m->all = v;
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

static int push(machine *m, ma_value *v) {
    if (!v) return -1;
    ma_value **stack = grown(m->stack, &m->room, m->n, sizeof *stack);
    if (!stack) return no_memory(m);
    m->stack = stack;
    stack[m->n++] = v;
    return 0;
}

static int push_int(machine *m, int64_t i) {
    ma_value *v = make(m, V_INT);
    if (v) v->integer = i;
    return push(m, v);
}

/* The top of the stack, above the last mark. NULL: there is none. */
static ma_value *top(machine *m) {
    if (m->n > (m->nmarks ? m->marks[m->nmarks - 1] : 0)) return m->stack[m->n - 1];
    broken(m, "the stack is empty");
    return NULL;
}

static ma_value *pop(machine *m) {
    ma_value *v = top(m);
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
static int pop_mark(machine *m, ma_value ***at, size_t *n) {
    if (!m->nmarks) return broken(m, "no mark on the stack");
    size_t from = m->marks[--m->nmarks];
    *at = m->stack + from;
    *n = m->n - from;
    m->n = from;
    return 0;
}

/* ---- containers ---- */

static int append(machine *m, ma_value *list, ma_value *const *at, size_t n) {
    for (size_t i = 0; i < n; i++) {
        list->holds |= at[i]->holds;
        if (list->kind == V_OPAQUE) continue; /* a container we do not know: only whether it holds tensors */
        ma_value **items = grown(list->list.at, &list->list.room, list->list.n, sizeof *items);
        if (!items) return no_memory(m);
        list->list.at = items;
        items[list->list.n++] = at[i];
    }
    return 0;
}

static int push_tuple(machine *m, ma_value **at, size_t n) {
    ma_value *v = make(m, V_TUPLE);
    return v && !append(m, v, at, n) ? push(m, v) : -1;
}

/* A tuple of the n topmost values. */
static int tuple_of(machine *m, size_t n) {
    ma_value *items[3];
    for (size_t i = n; i-- > 0;)
        if (!(items[i] = pop(m))) return -1;
    return push_tuple(m, items, n);
}

static int tuple_of_mark(machine *m) {
    ma_value **at = NULL;
    size_t n = 0;
    return pop_mark(m, &at, &n) ? -1 : push_tuple(m, at, n);
}

/* Puts the values into the container now on top: pairs into a dictionary, items into a list. */
static int extend(machine *m, ma_value_kind k, ma_value *const *at, size_t n) {
    ma_value *v = top(m);
    if (!v) return -1;
    if (v->kind != k && v->kind != V_OPAQUE) return broken(m, "items for something that is no container");
    if (k == V_DICT && n % 2) return broken(m, "a key without a value");
    return append(m, v, at, n);
}

static int extend_by(machine *m, ma_value_kind k, size_t n) {
    ma_value *items[2];
    for (size_t i = n; i-- > 0;)
        if (!(items[i] = pop(m))) return -1;
    return extend(m, k, items, n);
}

static int extend_by_mark(machine *m, ma_value_kind k) {
    ma_value **at = NULL;
    size_t n = 0;
    return pop_mark(m, &at, &n) ? -1 : extend(m, k, at, n);
}

/* ---- memo ---- */

static int memo_put(machine *m, uint64_t i) {
    ma_value *v = top(m);
    if (!v) return -1;
    if (i >= m->most) return broken(m, "a memo index that no pickler gives");
    ma_value **memo = grown(m->memo, &m->memo_room, (size_t)i, sizeof *memo);
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
    uint64_t i = ma_little(p, (int)n);
    if (n > 0 && n < 8 && p[n - 1] & 0x80) i |= UINT64_MAX << (8 * n);
    return push_int(m, (int64_t)i);
}

/* Text or bytes behind a length. */
static int push_text(machine *m, int length_bytes) {
    uint64_t n;
    const unsigned char *p;
    if (take_number(m, length_bytes, &n) || !(p = take(m, n))) return -1;
    ma_value *v = make(m, V_TEXT);
    if (v) v->text = (ma_text){(const char *)p, (size_t)n};
    return push(m, v);
}

static int skip_and_push(machine *m, uint64_t n) {
    return take(m, n) ? push(m, make(m, V_OPAQUE)) : -1;
}

/* ---- calls ---- */

static int push_global(machine *m, ma_text module, ma_text name) {
    ma_value *v = make(m, V_GLOBAL);
    if (v) {
        v->global.module = module;
        v->global.name = name;
    }
    return push(m, v);
}

static int global(machine *m) {
    ma_text module, name;
    return take_line(m, &module) || take_line(m, &name) ? -1 : push_global(m, module, name);
}

static int stack_global(machine *m) {
    ma_value *name = pop(m), *module = name ? pop(m) : NULL;
    if (!module) return -1;
    if (module->kind != V_TEXT || name->kind != V_TEXT) return broken(m, "a global without a name");
    return push_global(m, module->text, name->text);
}

/* What a call of f makes that we do not know: nothing, but it remembers whether a tensor was in it. */
static ma_value *opaque(machine *m, const ma_value *f, bool holds) {
    ma_value *v = make(m, V_OPAQUE);
    if (!v) return NULL;
    v->holds = holds;
    if (f->kind == V_GLOBAL) {
        v->global = f->global;
        const char *s = f->global.name.s;
        size_t n = f->global.name.n;
        v->holds |= (n > 8 && !memcmp(s, "_rebuild", 8)) || ma_text_is(f->global.name, "_load_from_bytes");
    }
    return v;
}

/* torch's storage classes by element type. False: another one. */
static bool storage_type(const ma_value *v, ma_type *type) {
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
    ma_value *id = pop(m), *v = id ? make(m, V_OPAQUE) : NULL;
    if (!v) return -1;
    v->holds = true;
    ma_value **at = id->kind == V_TUPLE ? id->list.at : NULL;
    size_t n = at ? id->list.n : 0;
    ma_type type;
    if (n < 5 || n > 6 || at[0]->kind != V_TEXT || !ma_text_is(at[0]->text, "storage") || !storage_type(at[1], &type) ||
        at[2]->kind != V_TEXT || at[4]->kind != V_INT || at[4]->integer < 0 || (n == 6 && at[5]->kind != V_OPAQUE))
        return push(m, v); /* a type we do not read, or a view as of 2017 */
    v->kind = V_STORAGE;
    v->type = type;
    v->storage.key = at[2]->text;
    v->storage.count = at[4]->integer;
    return push(m, v);
}

/* (storage, offset, size, stride, …) → a tensor; NULL where the arguments are others. */
static ma_value *tensor(machine *m, const ma_value *args, bool *failed) {
    ma_value **at = args->list.at;
    size_t n = args->list.n;
    if (n < 4 || n > 7 || at[0]->kind != V_STORAGE || at[1]->kind != V_INT || at[2]->kind != V_TUPLE ||
        at[3]->kind != V_TUPLE)
        return NULL;
    if (n == 7 && at[6]->kind == V_DICT && at[6]->list.n) return NULL; /* conjugate or negative bits */
    ma_value *v = make(m, V_TENSOR);
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
    ma_value *args = pop(m), *f = args ? pop(m) : NULL, *v = NULL;
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
    ma_value *state = pop(m), *v = state ? top(m) : NULL;
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
    ma_value **at = NULL;
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

/* Up to STOP. The value that is then on top; NULL: failed. */
static const ma_value *run(machine *m) {
    for (;;) {
        const unsigned char *op = take(m, 1);
        if (!op) return NULL;
        if (*op == '.') return pop(m);
        if (step(m, *op)) return NULL;
    }
}

const ma_value *ma_pickle_run(const char *path, const unsigned char **at, const unsigned char *end, ma_value **all,
                              ma_err *err) {
    size_t most = (size_t)(end - *at);
    if (most > MOST) most = MOST;
    machine m = {.path = path, .err = err, .at = *at, .end = *at + most, .most = most, .all = all};
    const ma_value *result = run(&m);
    if (result) *at = m.at;
    free(m.stack);
    free(m.memo);
    free(m.marks);
    return result;
}

void ma_values_free(ma_value *all) {
    while (all) {
        ma_value *v = all;
        all = v->next;
        if (v->kind == V_TUPLE || v->kind == V_LIST || v->kind == V_DICT) free(v->list.at);
        free(v);
    }
}
