/* pointwise: act, add, mul, affine, gate, rope, cast, and the pieces that other files share: column sums, bias
 * and activation, an activation's gradient. Forward beside backward.
 *
 * Minds: the inputs of an op may be one tensor, or parts of one. Their gradients are added in one pass only where they
 * do not overlap, else one after the other. Limits: rope gives no gradient to its tables. */
#include "pack.cuh"

using namespace packs;

namespace {

const array NONE = {nullptr, MA_F32};

ma_cuda *device_of(const ma_call *call) {
    return (ma_cuda *)call->stream;
}

/* ---- column sums: db (n) += Σ over rows of dy (rows, n), or of dy·a ---- */

enum { FEW = 64 }; /* rows that one thread can add by itself */

/* A column of few rows, added by one thread. Columns lie along the plane's only row. */
struct few_rows {
    array dy, a, db;
    int64_t rows, width;
    template <int N> __device__ void at(int64_t, int64_t column) const {
        pack<N> sum = {};
        for (int64_t r = 0; r < rows; r++) {
            pack<N> x = load<N>(dy, r * width + column);
            if (a.p) {
                pack<N> f = load<N>(a, r * width + column);
                for (int k = 0; k < N; k++) x.v[k] *= f.v[k];
            }
            for (int k = 0; k < N; k++) sum.v[k] += x.v[k];
        }
        add_to<N>(db, column, sum);
    }
};

/* The sums of a product, or of dy alone. */
struct products {
    array dy, a;
    int64_t width;
    template <int N> struct column {
        const products &f;
        int64_t at;
        __device__ column(const products &of, const piece &, int64_t where) : f(of), at(where) {}
        __device__ void add(int64_t row, float sum[1][N]) const {
            raw<N> rx = fetch<N>(f.dy, row * f.width + at), rf;
            if (f.a.p) rf = fetch<N>(f.a, row * f.width + at);
            pack<N> x = widen<N>(rx, f.dy.type);
            if (f.a.p) {
                pack<N> y = widen<N>(rf, f.a.type);
                for (int k = 0; k < N; k++) x.v[k] *= y.v[k];
            }
            for (int k = 0; k < N; k++) sum[0][k] += x.v[k];
        }
    };
};

struct into_columns {
    array db;
    __device__ void add(int64_t, bool, int64_t column, const double sum[1], double *) const {
        add_one(db, column, (float)sum[0]);
    }
    __device__ void end(int64_t, const double *) const {}
};

int add_column_sums(ma_cuda *d, const char *where, array dy, array a, int64_t rows, int64_t n, array db, void *work) {
    if (rows > FEW)
        return run_columns<1>(d, where, products{dy, a, n}, into_columns{db}, tokens_of(1, rows, 0, n),
                              grain(n, {dy, a, db}), (float *)work, false);
    return run_plane(d, where, few_rows{dy, a, db, rows, n}, 1, n, grain(n, {dy, a, db}));
}

} // namespace

size_t ma_cuda_columns_work(int64_t rows, int64_t n) {
    return rows > FEW ? parts_bytes(tokens_of(1, rows, 0, n), 1) : 0;
}

int ma_cuda_columns(ma_cuda *d, const void *dy, ma_type type, int64_t rows, int64_t n, float *db, bool add,
                    void *work) {
    return add_column_sums(d, "column sums", {(void *)dy, type}, NONE, rows, n, {db, MA_F32, !add}, work);
}

/* ---- activations ---- */

namespace {

/* y = act(x + bias), x + bias kept */
struct bias_act {
    ma_act act;
    array x, bias, keep, y;
    int64_t width;
    template <int N> __device__ void at(int64_t row, int64_t column) const {
        int64_t k = row * width + column;
        pack<N> v = load<N>(x, k);
        if (bias.p) {
            pack<N> b = load<N>(bias, column);
            for (int j = 0; j < N; j++) v.v[j] += b.v[j];
        }
        if (keep.p) store<N>(keep, k, v);
        activate<N>(act, v);
        store<N>(y, k, v);
    }
};

/* dx = dy·act'(from), or += */
struct act_grad {
    ma_act act;
    array from, dy, dx;
    bool add;
    template <int N> __device__ void at(int64_t, int64_t k) const {
        raw<N> rf = fetch<N>(from, k), rd = fetch<N>(dy, k);
        pack<N> f = widen<N>(rf, from.type), g = widen<N>(rd, dy.type);
        derive<N>(act, f);
        for (int j = 0; j < N; j++) f.v[j] *= g.v[j];
        if (add)
            add_to<N>(dx, k, f);
        else
            store<N>(dx, k, f);
    }
};

int run_act_grad(ma_cuda *d, ma_act act, array pre, array out, array dy, array dx, bool add, int64_t n) {
    array from = act == MA_NONE ? dy : needs_input(act) ? pre : out;
    if (!from.p) return n ? -1 : 0;
    return run_plane(d, "act's gradient", act_grad{act, from, dy, dx, add}, 1, n, grain(n, {from, dy, dx}));
}

} // namespace

int ma_cuda_act_grad(ma_cuda *d, ma_act act, ma_type type, const void *pre, const void *out, const void *dout,
                     void *dpre, int64_t n) {
    return run_act_grad(d, act, {(void *)pre, type}, {(void *)out, type}, {(void *)dout, type}, {dpre, type}, false, n);
}

int ma_cuda_bias_act(ma_cuda *d, ma_act act, ma_type type, const void *x, const void *bias, void *keep, void *out,
                     int64_t rows, int64_t columns) {
    bias_act f = {act, {(void *)x, type}, {(void *)bias, type}, {keep, type}, {out, type}, columns};
    return run_plane(d, "bias and act", f, rows, columns, grain(columns, {f.x, f.bias, f.keep, f.y}));
}

int ma_cuda_act_fwd(const ma_call *call) {
    int64_t n = ma_count(call->out);
    array x = data_of(call->in[0]), y = data_of(call->out);
    return run_plane(device_of(call), "act", bias_act{(ma_act)call->i[0], x, NONE, NONE, y, n}, 1, n, grain(n, {x, y}));
}

int ma_cuda_act_bwd(const ma_call *call) {
    return run_act_grad(device_of(call), (ma_act)call->i[0], data_of(call->in[0]), data_of(call->out),
                        data_of(call->out->grad), grad_of(call, 0), true, ma_count(call->out));
}

/* ---- add, mul: b (width) is repeated along a (rows, width) ---- */

namespace {

struct sum_of {
    array a, b, y;
    int64_t width;
    ma_act act;
    template <int N> __device__ void at(int64_t row, int64_t column) const {
        raw<N> ra = fetch<N>(a, row * width + column), rb = fetch<N>(b, column);
        pack<N> p = widen<N>(ra, a.type), q = widen<N>(rb, b.type);
        for (int k = 0; k < N; k++) p.v[k] += q.v[k];
        activate<N>(act, p);
        store<N>(y, row * width + column, p);
    }
};

struct product_of {
    array a, b, y;
    int64_t width;
    template <int N> __device__ void at(int64_t row, int64_t column) const {
        raw<N> ra = fetch<N>(a, row * width + column), rb = fetch<N>(b, column);
        pack<N> p = widen<N>(ra, a.type), q = widen<N>(rb, b.type);
        for (int k = 0; k < N; k++) p.v[k] *= q.v[k];
        store<N>(y, row * width + column, p);
    }
};

/* da += dy, db += dy: either may be missing */
struct sum_bwd {
    array dy, da, db;
    template <int N> __device__ void at(int64_t, int64_t k) const {
        pack<N> d = load<N>(dy, k);
        if (da.p) add_to<N>(da, k, d);
        if (db.p) add_to<N>(db, k, d);
    }
};

/* dx += dy·f, f repeated */
struct scaled_bwd {
    array dy, f, dx;
    int64_t width;
    template <int N> __device__ void at(int64_t row, int64_t column) const {
        int64_t k = row * width + column;
        raw<N> rd = fetch<N>(dy, k), rf = fetch<N>(f, column);
        pack<N> d = widen<N>(rd, dy.type), g = widen<N>(rf, f.type);
        for (int j = 0; j < N; j++) d.v[j] *= g.v[j];
        add_to<N>(dx, k, d);
    }
};

int add_scaled(const ma_call *call, array f, array dx, int64_t rows, int64_t width) {
    array dy = data_of(call->out->grad);
    return run_plane(device_of(call), "mul's gradient", scaled_bwd{dy, f, dx, width}, rows, width,
                     grain(width, {dy, f, dx}));
}

template <class F> int binary_fwd(const ma_call *call, F f) {
    f.a = data_of(call->in[0]), f.b = data_of(call->in[1]), f.y = data_of(call->out);
    f.width = ma_count(call->in[1]);
    if (f.width < 1) return 0;
    return run_plane(device_of(call), "add or mul", f, ma_count(call->out) / f.width, f.width,
                     grain(f.width, {f.a, f.b, f.y}));
}

int add_same(const ma_call *call, array da, array db, int64_t n) {
    array dy = data_of(call->out->grad);
    if (!da.p && !db.p) return 0;
    return run_plane(device_of(call), "add's gradient", sum_bwd{dy, da, db}, 1, n, grain(n, {dy, da, db}));
}

} // namespace

int ma_cuda_add_fwd(const ma_call *call) {
    sum_of f = {};
    f.act = (ma_act)call->i[0];
    return binary_fwd(call, f);
}

int ma_cuda_add_bwd(const ma_call *call) {
    array dy = data_of(call->out->grad), da = grad_of(call, 0), db = grad_of(call, 1);
    int64_t n = ma_count(call->out), width = ma_count(call->in[1]);
    bool same = width == n;
    if (same && apart(n, {da, db})) return add_same(call, da, db, n);
    if (add_same(call, da, NONE, n)) return -1;
    if (same) return add_same(call, NONE, db, n);
    return db.p ? add_column_sums(device_of(call), "add's gradient", dy, NONE, n / width, width, db, call->work) : 0;
}

int ma_cuda_mul_fwd(const ma_call *call) {
    return binary_fwd(call, product_of{});
}

int ma_cuda_mul_bwd(const ma_call *call) {
    array a = data_of(call->in[0]), b = data_of(call->in[1]), dy = data_of(call->out->grad);
    array da = grad_of(call, 0), db = grad_of(call, 1);
    int64_t n = ma_count(call->out), width = ma_count(call->in[1]);
    if (width < 1) return 0;
    if (da.p && add_scaled(call, b, da, n / width, width)) return -1;
    if (!db.p) return 0;
    if (width == n) return add_scaled(call, a, db, 1, n);
    return add_column_sums(device_of(call), "mul's gradient", dy, a, n / width, width, db, call->work);
}

/* ---- affine ---- */

namespace {

struct affine {
    array x, y;
    float mul, add;
    template <int N> __device__ void at(int64_t, int64_t k) const {
        pack<N> v = load<N>(x, k);
        for (int j = 0; j < N; j++) v.v[j] = v.v[j] * mul + add;
        store<N>(y, k, v);
    }
};

struct affine_bwd {
    array dy, dx;
    float mul;
    template <int N> __device__ void at(int64_t, int64_t k) const {
        pack<N> v = load<N>(dy, k);
        for (int j = 0; j < N; j++) v.v[j] *= mul;
        add_to<N>(dx, k, v);
    }
};

} // namespace

int ma_cuda_affine_fwd(const ma_call *call) {
    int64_t n = ma_count(call->out);
    affine f = {data_of(call->in[0]), data_of(call->out), (float)call->f[0], (float)call->f[1]};
    return run_plane(device_of(call), "affine", f, 1, n, grain(n, {f.x, f.y}));
}

int ma_cuda_affine_bwd(const ma_call *call) {
    int64_t n = ma_count(call->out);
    affine_bwd f = {data_of(call->out->grad), grad_of(call, 0), (float)call->f[0]};
    return run_plane(device_of(call), "affine's gradient", f, 1, n, grain(n, {f.dy, f.dx}));
}

/* ---- gate: x + gate·y ---- */

namespace {

/* Where the gate of a token stands in mod (B,R,C). */
struct gates {
    array mod;
    int64_t len, text, vectors, video_row, text_row, width;
    __device__ int64_t at(int64_t sample, bool is_text) const {
        return (sample * vectors + (is_text ? text_row : video_row)) * width;
    }
    __device__ int64_t of_token(int64_t token) const {
        int64_t sample = quotient(token, len);
        return at(sample, token - sample * len < text);
    }
};

gates gates_of(const ma_call *call) {
    const ma_tensor *x = call->in[0], *mod = call->in[2];
    return {data_of(mod), x->n[1], call->i[0], mod->n[1], call->i[1], call->i[2], x->n[2]};
}

struct gate {
    gates g;
    array x, y, out;
    template <int N> __device__ void at(int64_t token, int64_t column) const {
        int64_t k = token * g.width + column;
        raw<N> rx = fetch<N>(x, k), ry = fetch<N>(y, k), rg = fetch<N>(g.mod, g.of_token(token) + column);
        pack<N> p = widen<N>(rx, x.type), q = widen<N>(ry, y.type), s = widen<N>(rg, g.mod.type);
        for (int j = 0; j < N; j++) p.v[j] += s.v[j] * q.v[j];
        store<N>(out, k, p);
    }
};

struct gate_bwd {
    gates g;
    array dout, dx, dy;
    template <int N> __device__ void at(int64_t token, int64_t column) const {
        int64_t k = token * g.width + column;
        raw<N> rd = fetch<N>(dout, k), rg = fetch<N>(g.mod, g.of_token(token) + column);
        pack<N> d = widen<N>(rd, dout.type), s = widen<N>(rg, g.mod.type);
        if (dx.p) add_to<N>(dx, k, d);
        for (int j = 0; j < N; j++) d.v[j] *= s.v[j];
        if (dy.p) add_to<N>(dy, k, d);
    }
};

/* The same, and the gate's sums of dout·y by the way. */
struct gate_sums {
    gates g;
    array y, dout, dx, dy;
    template <int N> struct column {
        const gate_sums &f;
        int64_t where;
        pack<N> s;
        __device__ column(const gate_sums &of, const piece &p, int64_t at)
            : f(of), where(at), s(load<N>(of.g.mod, of.g.at(p.sample, p.text) + at)) {}
        __device__ void add(int64_t token, float sum[1][N]) const {
            int64_t k = token * f.g.width + where;
            raw<N> rd = fetch<N>(f.dout, k), ry = fetch<N>(f.y, k);
            pack<N> d = widen<N>(rd, f.dout.type), q = widen<N>(ry, f.y.type);
            if (f.dx.p) add_to<N>(f.dx, k, d);
            for (int j = 0; j < N; j++) sum[0][j] += d.v[j] * q.v[j];
            for (int j = 0; j < N; j++) d.v[j] *= s.v[j];
            if (f.dy.p) add_to<N>(f.dy, k, d);
        }
    };
};

struct into_gates {
    gates g;
    array dmod;
    __device__ void add(int64_t sample, bool text, int64_t column, const double sum[1], double *) const {
        add_one(dmod, g.at(sample, text) + column, (float)sum[0]);
    }
    __device__ void end(int64_t, const double *) const {}
};

tokens gate_tokens(const ma_call *call) {
    const ma_tensor *x = call->in[0];
    return tokens_of(x->n[0], x->n[1], call->i[0], x->n[2]);
}

int run_gate_bwd(const ma_call *call, array dx, array dy) {
    tokens t = gate_tokens(call);
    gate_bwd f = {gates_of(call), data_of(call->out->grad), dx, dy};
    if (!dx.p && !dy.p) return 0;
    return run_plane(device_of(call), "gate's gradient", f, t.batch * t.len, t.width,
                     grain(t.width, {f.g.mod, f.dout, dx, dy}));
}

} // namespace

size_t ma_cuda_gate_work(ma_cuda *, const ma_call *call, bool backward) {
    return backward && call->in[2]->want ? parts_bytes(gate_tokens(call), 1) : 0;
}

int ma_cuda_gate_fwd(const ma_call *call) {
    tokens t = gate_tokens(call);
    gate f = {gates_of(call), data_of(call->in[0]), data_of(call->in[1]), data_of(call->out)};
    return run_plane(device_of(call), "gate", f, t.batch * t.len, t.width, grain(t.width, {f.g.mod, f.x, f.y, f.out}));
}

int ma_cuda_gate_bwd(const ma_call *call) {
    array y = data_of(call->in[1]), dout = data_of(call->out->grad);
    array dx = grad_of(call, 0), dy = grad_of(call, 1), dmod = grad_of(call, 2);
    const bool together = apart(ma_count(call->out), {dx, dy});
    if (!together && run_gate_bwd(call, dx, NONE)) return -1;
    if (!together) dx = NONE;
    if (!dmod.p) return run_gate_bwd(call, dx, dy);
    tokens t = gate_tokens(call);
    gate_sums f = {gates_of(call), y, dout, dx, dy};
    return run_columns<1>(device_of(call), "gate's gradient", f, into_gates{f.g, dmod}, t,
                          grain(t.width, {f.g.mod, dout, y, dx, dy, dmod}), (float *)call->work, true);
}

/* ---- rope: pairs are rotated; backward, by the transposed matrix ---- */

namespace {

/* A row of the plane is a token. to = rotated, or += turned back. */
struct rope {
    array from, cosine, sine, to;
    int64_t len, text, width;
    int dim;
    bool back;
    template <int N> __device__ void at(int64_t token, int64_t column) const {
        static_assert(N % 2 == 0, "pairs");
        int64_t k = token * width + column, place = token - quotient(token, len) * len - text;
        pack<N> x = load<N>(from, k);
        if (place >= 0) {
            int64_t t = place * dim + (int)((unsigned)column % (unsigned)dim);
            raw<N> rc = fetch<N>(cosine, t), rs = fetch<N>(sine, t);
            turn<N>(x, widen<N>(rc, cosine.type), widen<N>(rs, sine.type));
        }
        if (back)
            add_to<N>(to, k, x);
        else
            store<N>(to, k, x);
    }
    template <int N> __device__ void turn(pack<N> &x, const pack<N> &c, const pack<N> &s) const {
        for (int j = 0; j < N; j += 2) {
            float u = x.v[j], v = x.v[j + 1];
            x.v[j] = back ? u * c.v[j] + v * s.v[j + 1] : u * c.v[j] - v * s.v[j];
            x.v[j + 1] = back ? v * c.v[j + 1] - u * s.v[j] : v * c.v[j + 1] + u * s.v[j + 1];
        }
    }
};

int run_rope(const ma_call *call, array from, array to, bool back) {
    const ma_tensor *x = call->in[0];
    int64_t dim = x->n[3], width = x->n[2] * dim;
    if (width > INT_MAX) return -1;
    rope f = {from, data_of(call->in[1]), data_of(call->in[2]), to, x->n[1], call->i[0], width, (int)dim, back};
    return run_plane<2>(device_of(call), "rope", f, x->n[0] * x->n[1], width, grain(dim, {from, f.cosine, f.sine, to}));
}

} // namespace

int ma_cuda_rope_fwd(const ma_call *call) {
    return run_rope(call, data_of(call->in[0]), data_of(call->out), false);
}

int ma_cuda_rope_bwd(const ma_call *call) {
    if (call->in[1]->want || call->in[2]->want) return -1;
    return run_rope(call, data_of(call->out->grad), grad_of(call, 0), true);
}

/* ---- cast: a row of the plane is one of out's, from's values and zeros behind them ---- */

namespace {

struct cast {
    array from, to;
    int64_t have, width;
    template <int N> __device__ void at(int64_t row, int64_t column) const {
        pack<N> x;
#pragma unroll
        for (int k = 0; k < N; k++) x.v[k] = column + k < have ? load_one(from, row * have + column + k) : 0;
        store<N>(to, row * width + column, x);
    }
};

} // namespace

int ma_cuda_cast_fwd(const ma_call *call) {
    const ma_tensor *in = call->in[0], *out = call->out;
    int64_t have = in->n[in->nd - 1], width = out->n[out->nd - 1];
    cast f = {data_of(in), data_of(out), have, width};
    if (!grain(1, {f.from})) return -1;
    return run_plane(device_of(call), "cast", f, width ? ma_count(out) / width : 0, width, grain(width, {f.to}));
}

/* ---- pixels: bytes, each colour its own way. Rows of three are one row of all; in wider ones zeros fill up ---- */

namespace {

struct pixels {
    const unsigned char *from;
    array to;
    int64_t width;
    float mul[3], add[3];
    /* The value of a byte of a colour; indices that the compiler does not know would go through memory. */
    __device__ float value(unsigned byte, int colour) const {
        float m = colour == 0 ? mul[0] : colour == 1 ? mul[1] : mul[2];
        float a = colour == 0 ? add[0] : colour == 1 ? add[1] : add[2];
        return (float)byte * m + a;
    }
    template <int N> __device__ void at(int64_t row, int64_t column) const {
        pack<N> x;
        if (width > 3) {
#pragma unroll
            for (int k = 0; k < N; k++)
                x.v[k] = column + k < 3 ? value(from[row * 3 + column + k], (int)column + k) : 0;
            store<N>(to, row * width + column, x);
            return;
        }
        int first = (int)(column % 3);
        if constexpr (N == PACK) {
            uint2 w = *(const uint2 *)(from + column);
#pragma unroll
            for (int k = 0; k < N; k++) x.v[k] = value((k < 4 ? w.x : w.y) >> k % 4 * 8 & 0xff, (first + k) % 3);
        } else {
#pragma unroll
            for (int k = 0; k < N; k++) x.v[k] = value(from[column + k], (first + k) % 3);
        }
        store<N>(to, column, x);
    }
};

} // namespace

int ma_cuda_pixels_fwd(const ma_call *call) {
    const ma_tensor *in = call->in[0], *out = call->out;
    int64_t width = out->n[out->nd - 1], n = ma_count(in);
    pixels f = {(const unsigned char *)in->data, data_of(out), width, {}, {}};
    if (in->type != MA_U8) return -1;
    for (int k = 0; k < 3; k++) {
        f.mul[k] = (float)call->f[k];
        f.add[k] = (float)call->f[3 + k];
    }
    if (width > 3) return run_plane(device_of(call), "pixels", f, n / 3, width, grain(width, {f.to}));
    bool even = (uintptr_t)f.from % 8 == 0; /* a pack is 8 bytes */
    return run_plane(device_of(call), "pixels", f, 1, n, grain(even ? n : 1, {f.to}));
}

/* ---- scratch of what reduces ---- */

size_t ma_cuda_reduce_work(ma_cuda *, const ma_call *call, bool backward) {
    if (call->op == MA_OP_L1 || call->op == MA_OP_MSE) return backward ? 0 : LOSS_PARTS * sizeof(double);
    int64_t n = ma_count(call->out), width = ma_count(call->in[1]);
    return backward && call->in[1]->want && width != n && width ? ma_cuda_columns_work(n / width, width) : 0;
}
