/* Flow on the host: .flo and KITTI's png there and back, damaged files of both, consistency, end-point errors. */
#include "../../common/flow.h"
#include "../../common/flow_file.h"
#include "../../common/video.h"
#include "../tap.h"

#include <string.h>

enum { H = 3, W = 5, HEAD = 12 };

static float pattern[H * W * 2]; // multiples of 1/64, as KITTI has them

static void make_pattern(void) {
    for (int i = 0; i < H * W * 2; i++) pattern[i] = (float)(i * 37 % 640 - 320) / 64;
}

/* The reason why reading fails, MA_OK if it does not. */
static ma_reason reading(const void *bytes, size_t size) {
    ma_err e = {0};
    ma_flow f = {0};
    int rc = ma_flow_read(bytes, size, "test", &f, &e);
    ma_flow_free(&f);
    return rc ? e.reason : MA_OK;
}

static void check_flo(void) {
    ma_err e = {0};
    ma_buf b = {0};
    ma_flow f;
    float odd[H * W * 2];
    memcpy(odd, pattern, sizeof odd);
    odd[4] = 2e9f;
    odd[7] = NAN;
    ok(!ma_flo_write(odd, H, W, &b, &e) && b.size == HEAD + sizeof odd && !memcmp(b.data, "PIEH", 4), "flo: written");
    ok(!ma_flow_read(b.data, b.size, "a.flo", &f, &e) && f.h == H && f.w == W && !memcmp(f.uv, odd, sizeof odd),
       "flo: read back %s", e.text);
    bool right = true;
    for (int i = 0; i < H * W; i++) right = right && f.valid[i] == (i != 2 && i != 3);
    ok(right, "flo: what is over 1e9, or NaN, is not known");
    ma_flow_free(&f);

    for (size_t n = 0; n < b.size; n++)
        if (reading(b.data, n) == MA_OK) right = false;
    ok(right, "flo: cut anywhere it is refused");
    ok(reading(b.data, HEAD - 1) == MA_CUT && reading(b.data, b.size - 1) == MA_CUT, "flo: that is called cut");
    ma_buf_add(&b, "x", 1);
    ok(reading(b.data, b.size) == MA_CORRUPT, "flo: too long");
    static const int32_t sizes[][2] = {
        {0, 3},     {5, -3},        {-1, -1}, {1 << 30, 1 << 30}, {INT32_MAX, INT32_MAX}, {1 << 16, 1 << 16},
        {16385, 1}, {0x20000001, 8}};
    for (size_t k = 0; k < sizeof sizes / sizeof *sizes; k++) {
        memcpy(b.data + 4, sizes[k], sizeof *sizes);
        ok(reading(b.data, b.size) == MA_CORRUPT, "flo: %dx%d is refused", (int)sizes[k][1], (int)sizes[k][0]);
    }
    ma_buf_free(&b);
}

static void check_kitti(void) {
    ma_err e = {0};
    ma_buf b = {0}, plain = {0};
    ma_flow f;
    uint8_t valid[H * W], rgb[H * W * 3] = {0};
    for (int i = 0; i < H * W; i++) valid[i] = i % 4 != 1;
    ok(!ma_kitti_write(pattern, valid, H, W, &b, &e) && !ma_flow_read(b.data, b.size, "a.png", &f, &e) && f.h == H &&
           f.w == W,
       "kitti: there and back %s", e.text);
    ok(f.uv && !memcmp(f.uv, pattern, sizeof pattern) && !memcmp(f.valid, valid, sizeof valid),
       "kitti: flow and mask are exact");
    ma_flow_free(&f);
    const float far[] = {600, -600};
    b.size = 0;
    ok(!ma_kitti_write(far, NULL, 1, 1, &b, &e) && !ma_flow_read(b.data, b.size, "a.png", &f, &e) &&
           f.uv[0] == 32767 / 64.0f && f.uv[1] == -512 && f.valid[0] == 1,
       "kitti: what it cannot hold is cut to what it can");
    ma_flow_free(&f);
    bool refused = true;
    for (size_t n = 0; n < b.size - 12; n++) refused = refused && reading(b.data, n) != MA_OK;
    ok(refused, "kitti: cut before its end it is refused");
    ma_png_write(rgb, H, W, &plain, &e);
    ok(reading(plain.data, plain.size) == MA_UNSUPPORTED, "a png of 8 bits is no flow");
    ok(reading("hello", 5) == MA_UNSUPPORTED && reading("", 0) == MA_UNSUPPORTED, "nor is a text");
    ma_buf_free(&b);
    ma_buf_free(&plain);
}

/* A square of 4×4 at (3,4) that moves by (4,2) before ground at rest. */
static void check_consistent(void) {
    enum { N = 16, SIDE = 4, X = 3, Y = 4, U = 4, V = 2 };
    float there[N * N * 2] = {0}, back[N * N * 2] = {0};
    uint8_t valid[N * N], want[N * N];
    memset(want, 1, sizeof want);
    for (int y = 0; y < SIDE; y++)
        for (int x = 0; x < SIDE; x++) {
            int from = (Y + y) * N + X + x, to = (Y + V + y) * N + X + U + x;
            there[2 * from] = U, there[2 * from + 1] = V;
            back[2 * to] = -U, back[2 * to + 1] = -V;
        }
    for (int y = 0; y < SIDE; y++)
        for (int x = 0; x < SIDE; x++) {
            int to = (Y + V + y) * N + X + U + x;
            if (there[2 * to] == 0) want[to] = 0; // ground that the square covers
        }
    ma_flow_consistent(there, back, N, N, valid);
    ok(!memcmp(valid, want, sizeof want), "consistent: but for what is covered");
    there[0] = -0.5f;
    there[2 * (N * N - 1) + 1] = 0.25f;
    there[2 * N] = NAN;
    want[0] = want[N * N - 1] = want[N] = 0;
    ma_flow_consistent(there, back, N, N, valid);
    ok(!memcmp(valid, want, sizeof want), "consistent: nor what leaves the picture, nor NaN");
    for (int i = 0; i < N * N; i++) { // half a pixel between columns, whose flows are 1 and 2: back by 1.5
        there[2 * i] = 0.5f, there[2 * i + 1] = 0;
        back[2 * i] = (float)(i % 2) + 1, back[2 * i + 1] = 0;
    }
    ma_flow_consistent(there, back, N, N, valid);
    bool none = true;
    for (int i = 0; i < N * N; i++) none = none && !valid[i];
    ok(none, "consistent: 2 pixels off is not");
    for (int i = 0; i < N * N; i++) back[2 * i] -= 2; // -1, 0: at the middle -0.5
    ma_flow_consistent(there, back, N, N, valid);
    bool all = true;
    for (int i = 0; i < N * N; i++) all = all && valid[i] == (i % N < N - 1);
    ok(all, "consistent: flow back is looked up between pixels");
}

static void check_errors(void) {
    const float truth[] = {0, 0, 0, 0, 0, 0, 0, 0, 5, 5}, got[] = {0, 1, 3, 4, 0, 3, 1, 1, 5, 5};
    const uint8_t valid[] = {1, 1, 1, 0, 1};
    ma_flow_error e = {0};
    ma_flow_compare(got, truth, NULL, 5, &e);
    ok(e.pixels == 5 && fabs(e.sum - (1 + 5 + 3 + sqrt(2))) < 1e-12 && e.over1 == 3 && e.over3 == 1, "errors of all");
    ma_flow_compare(got, truth, valid, 5, &e);
    ok(e.pixels == 9 && e.over1 == 5 && e.over3 == 2, "and of those that are valid, added");
    const float bad[] = {NAN, 0};
    ma_flow_compare(bad, truth, NULL, 1, &e);
    ok(e.over3 == 3 && isnan(e.sum), "NaN is never right");
}

int main(void) {
    make_pattern();
    check_flo();
    check_kitti();
    check_consistent();
    check_errors();
    return tap_done();
}
