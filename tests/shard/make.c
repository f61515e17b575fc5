/* make: writes the tests' shard for the shell tests: make FILE LEVEL. No test of its own. */
#include "samples.h"

int main(int argc, char **argv) {
    if (argc == 3) return write_shard(argv[1], SAMPLES, atoi(argv[2]), 2) ? 1 : 0;
    puts("1..0 # SKIP a helper of foreign.t and man-program.t");
    return 0;
}
