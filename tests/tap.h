/* tap: the Test Anything Protocol, for prove. One program, many assertions, a plan at the end. */
#ifndef TAP_H
#define TAP_H

#include <math.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>

static int tap_n, tap_bad;

__attribute__((format(printf, 2, 3), unused)) static bool ok(bool good, const char *fmt, ...) {
    va_list ap;
    va_start(ap, fmt);
    printf("%sok %d - ", good ? "" : "not ", ++tap_n);
    vprintf(fmt, ap);
    putchar('\n');
    fflush(stdout);
    va_end(ap);
    tap_bad += !good;
    return good;
}

/* The rest needs something that is not here. */
__attribute__((unused)) static void skip(const char *why) {
    printf("ok %d # SKIP %s\n", ++tap_n, why);
}

/* return tap_done(); from main: prints the plan; the exit status is 1 if anything failed. */
__attribute__((unused)) static int tap_done(void) {
    printf("1..%d\n", tap_n);
    return tap_bad != 0;
}

/* ‖a - b‖ / ‖b‖ in double; NaN anywhere gives NaN, which is below nothing. */
__attribute__((unused)) static double rel_error(const float *a, const float *b, size_t n) {
    double d = 0, s = 0;
    for (size_t i = 0; i < n; i++) {
        double e = (double)a[i] - b[i];
        d += e * e;
        s += (double)b[i] * b[i];
    }
    return sqrt(d / (s > 0 ? s : 1));
}

#endif
