/* tokenizer: see tokenizer.h. In C++, as SentencePiece's library is.
 *
 * Special tokens that stand in a text (</s>, <pad>, <unk>, <extra_id_0> … <extra_id_99>) are those tokens; what is
 * between them is encoded piece by piece. The 100 <extra_id_…> follow SentencePiece's own pieces, the last one first.
 * Limits: spiece.model only (no tokenizer.json); no language but T5's has been tried.
 * Traps: U+0085 is white space to transformers, not to SentencePiece: it becomes a space. A letter with two or more
 * combining marks that stand apart (not composed) may differ from transformers' fast tokenizer, which takes them as one
 * (its slow one did not); a text that ends with </s> gets a second one, as there. No exception leaves this file. */
#include "tokenizer.h"

extern "C" {
#include "file.h"
}

#include <sentencepiece_processor.h>

#include <exception>
#include <string>
#include <sys/stat.h>
#include <vector>

/* What the library prints of its own: 0.1.96 a line for each model without a map of characters. Exported from there to
 * 0.2.0, in no installed header; weak, so that a version without it will do. */
namespace sentencepiece::logging {
__attribute__((weak)) void SetMinLogLevel(int);
}

struct ma_tokenizer {
    sentencepiece::SentencePieceProcessor pieces;
    std::string path;
    int pad, eos, unk; /* asking the library for them is slow */
};

namespace {

constexpr size_t MOST_BYTES = (size_t)64 << 20; /* of a model */
enum { SENTINELS = 100 };
constexpr char SENTINEL[] = "<extra_id_";

/* The token whose name begins at `at`, and where the name ends; -1: there is none. */
int special_at(const ma_tokenizer &t, const std::string &text, size_t at, size_t *end) {
    for (int id : {t.pad, t.eos, t.unk}) {
        const std::string &name = t.pieces.IdToPiece(id);
        *end = at + name.size();
        if (!text.compare(at, name.size(), name)) return id;
    }
    if (text.compare(at, sizeof SENTINEL - 1, SENTINEL)) return -1;
    size_t first = at + sizeof SENTINEL - 1, n = 0;
    int number = 0;
    for (; n < 2 && first + n < text.size() && text[first + n] >= '0' && text[first + n] <= '9'; n++)
        number = 10 * number + text[first + n] - '0';
    *end = first + n + 1;
    if (!n || *end > text.size() || text[first + n] != '>' || (n == 2 && number < 10)) return -1;
    return t.pieces.GetPieceSize() + SENTINELS - 1 - number;
}

/* Adds the tokens of what holds no special ones. */
int add_plain(const ma_tokenizer &t, std::string text, std::vector<int> &ids, ma_err *e) {
    for (size_t at = 0; (at = text.find("\xc2\x85", at)) != std::string::npos;) text.replace(at, 2, " ");
    std::vector<int> part;
    const auto status = t.pieces.Encode(text, &part);
    if (!status.ok()) return ma_fail(e, MA_CORRUPT, "%s: %s", t.path.c_str(), status.ToString().c_str());
    ids.insert(ids.end(), part.begin(), part.end());
    return 0;
}

int encode(const ma_tokenizer &t, const std::string &text, std::vector<int> &ids, ma_err *e) {
    size_t from = 0, end = 0;
    for (size_t at = 0; (at = text.find('<', at)) != std::string::npos;) {
        int id = special_at(t, text, at, &end);
        if (id < 0) {
            at++;
            continue;
        }
        if (add_plain(t, text.substr(from, at - from), ids, e)) return -1;
        ids.push_back(id);
        at = from = end;
    }
    if (add_plain(t, text.substr(from), ids, e)) return -1;
    ids.push_back(t.eos);
    return 0;
}

/* -1: it cannot be read, or is not T5's. */
int load(ma_tokenizer &t, ma_err *e) {
    ma_buf model = {};
    if (ma_read_file(t.path.c_str(), MOST_BYTES, &model, e)) return -1;
    if (sentencepiece::logging::SetMinLogLevel) sentencepiece::logging::SetMinLogLevel(2); /* errors */
    const auto status = t.pieces.LoadFromSerializedProto(absl::string_view(model.data, model.size));
    ma_buf_free(&model);
    const char *path = t.path.c_str();
    if (!status.ok()) return ma_fail(e, MA_CORRUPT, "%s: not a SentencePiece model", path);
    t.pad = t.pieces.pad_id();
    t.eos = t.pieces.eos_id();
    t.unk = t.pieces.unk_id();
    if (t.pad >= 0 && t.eos >= 0 && t.unk >= 0) return 0;
    return ma_fail(e, MA_UNSUPPORTED, "%s: no padding, end or unknown token: not T5's", path);
}

int no_memory(const char *path, ma_err *e) {
    return ma_fail(e, MA_MEMORY, "%s: out of memory", path);
}

} // namespace

ma_tokenizer *ma_tokenizer_open(const char *path, ma_err *e) {
    ma_tokenizer *t = nullptr;
    try {
        struct stat st;
        t = new ma_tokenizer;
        t->path = path;
        if (!stat(path, &st) && S_ISDIR(st.st_mode)) t->path += "/spiece.model";
        if (!load(*t, e)) return t;
    } catch (const std::exception &) {
        no_memory(path, e);
    }
    delete t;
    return nullptr;
}

void ma_tokenizer_free(ma_tokenizer *t) {
    delete t;
}

int ma_tokenizer_size(const ma_tokenizer *t) {
    return t->pieces.GetPieceSize() + SENTINELS;
}

int64_t ma_tokenize(const ma_tokenizer *t, const char *text, size_t size, int32_t *ids, int64_t length, ma_err *e) {
    if (length < 1) return ma_fail(e, MA_USAGE, "%s: texts of %lld tokens", t->path.c_str(), (long long)length);
    try {
        std::vector<int> all;
        if (encode(*t, std::string(text, size), all, e)) return -1;
        const int64_t n = (int64_t)all.size();
        for (int64_t k = 0; k < length; k++) ids[k] = k < n ? all[(size_t)k] : t->pad;
        if (n > length) ids[length - 1] = t->eos;
        return n;
    } catch (const std::exception &) {
        return no_memory(t->path.c_str(), e);
    }
}
