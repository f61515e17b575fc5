/* SHA-256: the examples of FIPS 180-4, and the same bytes in pieces of all sizes. */
#include "../../common/file.h"
#include "../tap.h"
#include <string.h>

static void is(const char *text, size_t times, const char *want) {
    char hex[65];
    ma_sha *s = ma_sha_new();
    for (size_t i = 0; i < times; i++) ma_sha_add(s, text, strlen(text));
    ma_sha_end(s, hex);
    ok(!strcmp(hex, want), "%zu times \"%.20s\"", times, text);
}

int main(void) {
    static char bytes[1000];
    is("", 1, "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855");
    is("abc", 1, "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
    is("abcdbcdecdefdefgefghfghighijhijkijkljklmklmnlmnomnopnopq", 1,
       "248d6a61d20638b8e5c026930c3e6039a33ce45964ff2167f6ecedd419db06c1");
    is("a", 1000000, "cdc76e5c9914fb9281a1c7e284d73e67f1809a48a497200e046d39ccc7112cd0");
    int wrong = 0;
    for (size_t i = 0; i < sizeof bytes; i++) bytes[i] = (char)(i * i % 253);
    for (size_t n = 0; n < sizeof bytes; n += 7)
        for (size_t piece = 1; piece < 140; piece += 3) {
            char whole[65], parts[65];
            ma_sha *s = ma_sha_new();
            for (size_t at = 0; at < n; at += piece) ma_sha_add(s, bytes + at, n - at < piece ? n - at : piece);
            ma_sha_end(s, parts);
            ma_sha_bytes(bytes, n, whole);
            wrong += strcmp(whole, parts) != 0;
        }
    ok(!wrong, "in pieces");
    return tap_done();
}
