/* preset: a readable file of option values, so that the stages of a method cannot disagree.
 *     # a comment
 *     [ma-extract ma-flow]
 *     clip = 49x160x240
 *     [ma-flow]
 *     stride = 2
 * A heading names the tools for which the lines below it stand; an option without a value stands alone. */
#ifndef MA_PRESET_H
#define MA_PRESET_H

#include "base.h"

typedef struct ma_preset_line {
    const char *name, *value; /* value NULL: none */
    int line;                 /* in the file, from 1 */
} ma_preset_line;

typedef struct ma_preset {
    char *path; /* of the file that was found */
    ma_buf text;
    ma_preset_line *at;
    int n;
} ma_preset;

/* The lines that stand for a tool, in order. name: a file, if there is a slash in it; otherwise looked for in
 * ../share/ma-tools/presets beside the program's folder, then in the source tree's pipelines/presets. A preset without
 * a section for the tool, and a line that is none, are errors that name file and line. Zero-initialise; free also on
 * error. */
int ma_preset_read(const char *name, const char *tool, ma_preset *, ma_err *);
void ma_preset_free(ma_preset *);

#endif
