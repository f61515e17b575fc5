/* layout: concat, slice, unpatch. Nothing is computed: backward adds along the ways that forward copied. What is joined
 * may be of several types; the output's is the first one's. */
#include "pack.cuh"

using namespace packs;

namespace {

/* rows runs of `run` elements; in each array a run stands `step` elements after the one before. */
struct transfer {
    array to, from;
    int64_t to_step, from_step;
    bool add;
    template <int N> __device__ void at(int64_t row, int64_t k) const {
        pack<N> x = load<N>(from, row * from_step + k);
        if (add)
            add_to<N>(to, row * to_step + k, x);
        else
            store<N>(to, row * to_step + k, x);
    }
};

/* The array from element k on. */
array from_element(array a, int64_t k) {
    return {(char *)a.p + (size_t)k * ma_type_size(a.type), a.type, a.fresh};
}

int run_transfer(const ma_call *call, transfer f, int64_t rows, int64_t run) {
    int n = grain(run, {f.to, f.from});
    if (n == PACK && (f.to_step % PACK || f.from_step % PACK)) n = 1;
    return run_plane((ma_cuda *)call->stream, "copy", f, rows, run, n);
}

/* Elements of one step of the axis, and how often the axis is gone through. */
int64_t inner(const ma_tensor *t, int64_t axis) {
    int64_t n = 1;
    for (int k = (int)axis + 1; k < t->nd; k++) n *= t->n[k];
    return n;
}

int64_t outer(const ma_tensor *t, int64_t axis) {
    int64_t n = 1;
    for (int k = 0; k < axis; k++) n *= t->n[k];
    return n;
}

/* part is whole's steps from, from+1, … of the axis. */
struct way {
    const ma_tensor *whole, *part;
    int64_t axis, from;
};

int into_whole(const ma_call *call, const way &w, array whole, array part, bool add) {
    int64_t one = inner(w.whole, w.axis), run = w.part->n[w.axis] * one;
    transfer f = {from_element(whole, w.from * one), part, w.whole->n[w.axis] * one, run, add};
    return run_transfer(call, f, outer(w.part, w.axis), run);
}

int out_of_whole(const ma_call *call, const way &w, array whole, array part, bool add) {
    int64_t one = inner(w.whole, w.axis), run = w.part->n[w.axis] * one;
    transfer f = {part, from_element(whole, w.from * one), run, w.whole->n[w.axis] * one, add};
    return run_transfer(call, f, outer(w.part, w.axis), run);
}

} // namespace

int ma_cuda_concat_fwd(const ma_call *call) {
    int64_t axis = call->i[0], from = 0;
    for (int k = 0; k < 8 && call->in[k]; k++) {
        const ma_tensor *x = call->in[k];
        if (into_whole(call, {call->out, x, axis, from}, data_of(call->out), data_of(x), false)) return -1;
        from += x->n[axis];
    }
    return 0;
}

int ma_cuda_concat_bwd(const ma_call *call) {
    int64_t axis = call->i[0], from = 0;
    for (int k = 0; k < 8 && call->in[k]; k++) {
        const ma_tensor *x = call->in[k];
        array dx = grad_of(call, k);
        if (dx.p && out_of_whole(call, {call->out, x, axis, from}, data_of(call->out->grad), dx, true)) return -1;
        from += x->n[axis];
    }
    return 0;
}

int ma_cuda_slice_fwd(const ma_call *call) {
    const ma_tensor *x = call->in[0];
    return out_of_whole(call, {x, call->out, call->i[0], call->i[1]}, data_of(x), data_of(call->out), false);
}

int ma_cuda_slice_bwd(const ma_call *call) {
    const ma_tensor *x = call->in[0];
    return into_whole(call, {x, call->out, call->i[0], call->i[1]}, grad_of(call, 0), data_of(call->out->grad), true);
}

/* ---- unpatch: a row of the plane is a line of pixels ---- */

namespace {

/* Element (c·p + r)·p + s of a token is channel c of its pixel (r, s). Forward: pixels = tokens; back: tokens +=
 * pixels. */
struct unpatch {
    array tokens, pixels;
    int64_t width, size; /* tokens a row; elements a token */
    int p, channels;
    bool back;
    template <int N> __device__ void at(int64_t line, int64_t column) const {
        static_assert(N == 1, "element by element");
        int64_t token_row = quotient(line, p), x = quotient(column, channels), token = quotient(x, p);
        int c = (int)(column - x * channels), r = (int)(line - token_row * p), s = (int)(x - token * p);
        int64_t from = (token_row * width + token) * size + (c * p + r) * p + s;
        int64_t to = line * width * p * channels + column;
        if (back)
            add_one(tokens, from, load_one(pixels, to));
        else
            store_one(pixels, to, load_one(tokens, from));
    }
};

int run_unpatch(const ma_call *call, array tokens, array pixels, bool back) {
    const ma_tensor *x = call->in[0], *y = call->out;
    if (x->n[4] > INT_MAX || !grain(1, {tokens, pixels})) return -1;
    unpatch f = {tokens, pixels, x->n[3], x->n[4], (int)call->i[0], (int)y->n[4], back};
    return run_each<1>((ma_cuda *)call->stream, "unpatch", f, y->n[0] * y->n[1] * y->n[2], y->n[3] * y->n[4]);
}

} // namespace

int ma_cuda_unpatch_fwd(const ma_call *call) {
    return run_unpatch(call, data_of(call->in[0]), data_of(call->out), false);
}

int ma_cuda_unpatch_bwd(const ma_call *call) {
    return run_unpatch(call, grad_of(call, 0), data_of(call->out->grad), true);
}
