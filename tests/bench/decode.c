/* decode: what reading clips costs beside the bare decoder, over threads: frames a second of FFmpeg alone (demuxer and
 * decoder, every frame thrown away) and of ma_video_read on the same files; and processor time a clip, by which alone
 * they can be told apart on a machine that has other work.
 *   decode [-j THREADS] [-n CLIPS] [-c FxHxW] [--alone] FILE…
 * The files are taken in turn until CLIPS have been read. Both decode the same frames: F from the first on. No test,
 * nothing can fail but the files. */
#include "../../common/cli.h"
#include "../../common/file.h"
#include "../../common/video.h"
#include <libavcodec/avcodec.h>
#include <libavformat/avformat.h>
#include <omp.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

static int64_t threads, clips = 200;
static ma_clip_size size = {49, 160, 240, 0};
static bool alone;

static const ma_opt options[] = {
    {"clips", 'n', MA_OPT_INT, &clips, "N", "clips to read", 1, 1e6},
    {"clip", 'c', MA_OPT_CLIP, &size, "FxHxW", "frames, height, width (default 49x160x240)", 0, 0},
    {"alone", 0, MA_OPT_FLAG, &alone, NULL, "measure the decoder alone", 0, 0},
    {0},
};
static ma_cli cli = {.name = "decode", .does = "measures decoding", .args = "FILE…", .opts = options};

typedef struct bytes_at {
    const uint8_t *data;
    int64_t size, at;
} bytes_at;

static int read_bytes(void *opaque, uint8_t *out, int n) {
    bytes_at *s = opaque;
    if (s->at == s->size) return AVERROR_EOF;
    if (n > s->size - s->at) n = (int)(s->size - s->at);
    memcpy(out, s->data + s->at, (size_t)n);
    s->at += n;
    return n;
}

static int64_t seek_bytes(void *opaque, int64_t to, int whence) {
    bytes_at *s = opaque;
    if (whence & AVSEEK_SIZE) return s->size;
    return s->at = (whence & ~AVSEEK_FORCE) == SEEK_CUR ? s->at + to : to;
}

/* Frames decoded, most at most, by FFmpeg alone. */
static int64_t decoded(const ma_buf *b, int64_t most) {
    bytes_at src = {(const uint8_t *)b->data, (int64_t)b->size, 0};
    AVIOContext *io = avio_alloc_context(av_malloc(1 << 16), 1 << 16, 0, &src, read_bytes, NULL, seek_bytes);
    AVFormatContext *file = avformat_alloc_context();
    AVPacket *packet = av_packet_alloc();
    AVFrame *frame = av_frame_alloc();
    int64_t n = 0;
    int k = -1;
    file->pb = io;
    if (!avformat_open_input(&file, NULL, NULL, NULL) && avformat_find_stream_info(file, NULL) >= 0)
        k = av_find_best_stream(file, AVMEDIA_TYPE_VIDEO, -1, -1, NULL, 0);
    const AVCodec *decoder = k < 0 ? NULL : avcodec_find_decoder(file->streams[k]->codecpar->codec_id);
    AVCodecContext *c = decoder ? avcodec_alloc_context3(decoder) : NULL;
    if (c) {
        avcodec_parameters_to_context(c, file->streams[k]->codecpar);
        c->thread_count = 1;
        avcodec_open2(c, decoder, NULL);
    }
    for (bool more = c; more && n < most;) {
        more = av_read_frame(file, packet) >= 0;
        if (!more || packet->stream_index == k) avcodec_send_packet(c, more ? packet : NULL);
        av_packet_unref(packet);
        while (n < most && !avcodec_receive_frame(c, frame)) n++;
    }
    avcodec_free_context(&c);
    avformat_close_input(&file);
    av_freep(&io->buffer);
    avio_context_free(&io);
    av_packet_free(&packet);
    av_frame_free(&frame);
    return n;
}

static int64_t ours(const ma_buf *b, const char *name) {
    ma_clip clip;
    ma_err e = {0};
    ma_clip_opts o = {.size = size, .when_short = MA_SHORT_PAD};
    int64_t n = 0;
    omp_set_num_threads(1);
    if (ma_video_read(b->data, b->size, name, &o, &clip, &e)) {
        fprintf(stderr, "%s\n", e.text);
        return 0;
    }
    for (int64_t k = 0; k < clip.frames; k++) n += clip.index[k] >= 0;
    ma_clip_free(&clip);
    return n;
}

/* Seconds that all threads have computed. */
static double computed(void) {
    struct timespec t;
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

typedef struct cost {
    double rate, cpu; /* frames a second; seconds of processors a clip */
} cost;

static cost measure(const ma_buf *file, bool all) {
    int64_t frames = 0;
    double start = ma_now(), from = computed();
#pragma omp parallel for schedule(dynamic, 1) reduction(+ : frames) num_threads((int)threads)
    for (int64_t k = 0; k < clips; k++) {
        int i = (int)(k % cli.inputs.n);
        frames += all ? ours(&file[i], cli.inputs.at[i]) : decoded(&file[i], size.frames ? size.frames : INT64_MAX);
    }
    return (cost){(double)frames / (ma_now() - start), (computed() - from) / (double)clips};
}

int main(int argc, char **argv) {
    int rc = ma_cli_parse(&cli, argc, argv, stdout);
    if (rc >= 0) return rc;
    threads = omp_get_max_threads();
    ma_buf *file = calloc((size_t)cli.inputs.n + 1, sizeof *file);
    ma_err e = {0};
    rc = 0;
    for (int i = 0; file && i < cli.inputs.n; i++)
        if (ma_read_file(cli.inputs.at[i], (size_t)1 << 32, &file[i], &e)) rc = 1;
    if (rc || !file || !cli.inputs.n) {
        fprintf(stderr, "decode: %s\n", e.reason ? e.text : "no files");
        return 1;
    }
    ma_video_read(file[0].data, 0, "", &(ma_clip_opts){0}, &(ma_clip){0}, NULL); // silences FFmpeg
    const cost bare = measure(file, false);
    printf("decoder alone %.0f frames/s, processor time a clip %.1f ms (%lld threads)\n", bare.rate, 1e3 * bare.cpu,
           (long long)threads);
    if (!alone) {
        const cost with = measure(file, true);
        printf("read as %lldx%lldx%lld %.0f frames/s, %.3f of it; processor time a clip %.1f ms\n",
               (long long)size.frames, (long long)size.height, (long long)size.width, with.rate, with.rate / bare.rate,
               1e3 * with.cpu);
    }
    for (int i = 0; i < cli.inputs.n; i++) ma_buf_free(&file[i]);
    free(file);
    ma_cli_free(&cli);
    return 0;
}
