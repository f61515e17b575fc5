/* csv: a table in a text, read record by record: commas (or tabs) between fields, quotes around what holds them, line
 * breaks or quotes; and the same for writing. */
#ifndef MA_CSV_H
#define MA_CSV_H

#include "base.h"

typedef struct ma_csv {
    const char *path;    /* for messages */
    char *at;            /* what is not read yet; the text is changed by reading */
    char between;        /* , or a tab */
    int64_t line, began; /* of what is read next, from 1; of the record */
    char **field;        /* of the record; they point into the text. free() it at the end */
    int n, room;
} ma_csv;

/* 1: a record. 0: the end. -1: a quote that is not closed, or text behind one. Empty lines are passed over. */
int ma_csv_next(ma_csv *, ma_err *);
/* The same, once the width is known: a record of another number of fields is an error. */
int ma_csv_row(ma_csv *, int wide, ma_err *);
/* The column of the first of these names (NULL at the end) in the record, in any case; -1: there is none. */
int ma_csv_column(const ma_csv *, const char *const *names);
/* Adds a field, in quotes where it needs them, and what ends it: a comma, or '\n'. -1: out of memory. */
int ma_csv_put(ma_buf *, const char *text, char end);

#endif
