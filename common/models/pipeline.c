/* pipeline: see pipeline.h. */
#include "pipeline.h"

#include "../file.h"
#include "../shard.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static char *path_in(const char *dir, const char *name, ma_err *e) {
    char *path = ma_format("%s/%s", dir, name);
    if (!path) ma_fail(e, MA_MEMORY, "%s: out of memory", dir);
    return path;
}

static int read_codec(const char *path, ma_pipeline *p, ma_err *e) {
    ma_buf text = {0};
    if (ma_read_file(path, (size_t)1 << 20, &text, e)) return -1;
    cJSON *json = ma_json_parse(text.data, text.size, path, e);
    ma_buf_free(&text);
    if (!json) return -1;
    const char *class = cJSON_GetStringValue(cJSON_GetObjectItemCaseSensitive(json, "_class_name"));
    const cJSON *patch = cJSON_GetObjectItemCaseSensitive(json, "patch_size");
    const cJSON *scaling = cJSON_GetObjectItemCaseSensitive(json, "scaling_factor");
    int rc = 0;
    p->scaling = cJSON_IsNumber(scaling) ? scaling->valuedouble : 1;
    p->pixel = 0;
    if (!(p->scaling > 0 && p->scaling < 1e6)) rc = ma_fail(e, MA_CORRUPT, "%s: scaling_factor must be positive", path);
    if (class && !strcmp(class, "MaPixelCodec")) {
        if (cJSON_IsNumber(patch) && patch->valuedouble >= 1 && patch->valuedouble <= 64)
            p->pixel = (int64_t)patch->valuedouble;
        else
            rc = ma_fail(e, MA_CORRUPT, "%s: patch_size must be 1..64", path);
    } else if (!class || strcmp(class, "AutoencoderKLCogVideoX"))
        rc = ma_fail(e, MA_UNSUPPORTED, "%s: codec %s is neither AutoencoderKLCogVideoX nor MaPixelCodec", path,
                     class ? class : "without a name");
    cJSON_Delete(json);
    return rc;
}

int ma_pipeline_read(const char *dir, ma_pipeline *p, ma_err *e) {
    char *transformer = path_in(dir, "transformer/config.json", e), *codec = path_in(dir, "vae/config.json", e),
         *scheduler = path_in(dir, "scheduler/scheduler_config.json", e);
    int rc = transformer && codec && scheduler ? 0 : -1;
    if (!rc) rc = cogvideox_config_read(transformer, &p->transformer, e);
    if (!rc) rc = ma_schedule_read(scheduler, &p->schedule, e);
    if (!rc) rc = read_codec(codec, p, e);
    if (!rc && p->pixel && p->transformer.in_channels != 3 * p->pixel * p->pixel)
        rc = ma_fail(e, MA_SHAPE, "%s: in_channels %d do not go with a pixel codec of %lld", transformer,
                     p->transformer.in_channels, (long long)p->pixel);
    free(transformer);
    free(codec);
    free(scheduler);
    return rc;
}

/* dir/part/name holding text; the folder is made. */
static int write_text(const char *dir, const char *part, const char *name, const char *text, ma_err *e) {
    char *folder = path_in(dir, part, e), *path = folder ? path_in(folder, name, e) : NULL;
    int rc = path && !ma_make_dirs(folder, e) ? ma_write_file(path, text, strlen(text), e) : -1;
    free(folder);
    free(path);
    return rc;
}

int ma_pipeline_write(const char *dir, const ma_pipeline *p, ma_err *e) {
    static const char index[] = "{\n  \"_class_name\": \"CogVideoXPipeline\",\n"
                                "  \"scheduler\": [\"diffusers\", \"CogVideoXDDIMScheduler\"],\n"
                                "  \"transformer\": [\"diffusers\", \"CogVideoXTransformer3DModel\"],\n"
                                "  \"vae\": [\"ma-tools\", \"MaPixelCodec\"]\n}\n";
    char codec[160];
    snprintf(codec, sizeof codec,
             "{\n  \"_class_name\": \"MaPixelCodec\",\n  \"patch_size\": %lld,\n  \"scaling_factor\": %.17g\n}\n",
             (long long)p->pixel, p->scaling);
    if (write_text(dir, ".", "model_index.json", index, e) || write_text(dir, "vae", "config.json", codec, e))
        return -1;
    char *folder = path_in(dir, "scheduler", e), *path = folder ? path_in(folder, "scheduler_config.json", e) : NULL;
    int rc = path && !ma_make_dirs(folder, e) ? ma_schedule_write(path, &p->schedule, e) : -1;
    free(folder);
    free(path);
    return rc;
}

ma_weights *ma_pipeline_weights(const char *dir, const char *transformer, ma_err *e) {
    char *path = transformer ? NULL : path_in(dir, "transformer", e);
    ma_weights *w = transformer || path ? ma_weights_open(transformer ? transformer : path, e) : NULL;
    free(path);
    return w;
}
