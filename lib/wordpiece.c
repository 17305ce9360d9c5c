#include "lib/wordpiece.h"

#include <stdlib.h>
#include <utf8proc.h>

#include "lib/err.h"
#include "lib/files.h"
#include "lib/mem.h"

enum { MAX_WORD = 100 }; /* characters; longer words are [UNK], as the original has it */

struct wordpiece {
    char *text;        /* vocab.txt, lines ended by NUL */
    const char **word; /* by id */
    size_t n;
    int32_t *slot;     /* open-addressed hash of ids, -1 empty */
    size_t mask;
    int32_t cls, sep, unk;
};

static int32_t look_up(const struct wordpiece *w, const char *s, size_t n)
{
    for (size_t i = fnv1a(FNV_INIT, s, n) & w->mask;; i = (i + 1) & w->mask) {
        int32_t id = w->slot[i];
        if (id < 0 || (!strncmp(w->word[id], s, n) && !w->word[id][n]))
            return id;
    }
}

int wordpiece_load(const char *dir, struct wordpiece **out)
{
    char *path = path_join(dir, "vocab.txt");
    struct file_map f;
    *out = NULL;
    int rc = file_map(path, 64 << 20, &f);
    if (rc < 0) {
        free(path);
        return rc;
    }
    struct wordpiece *w = xcalloc(1, sizeof *w);
    size_t cap = 0;
    w->text = xstrndup(f.data, f.size);
    file_unmap(&f);
    for (char *p = w->text; *p;) {
        char *end = p + strcspn(p, "\n"), *next = *end ? end + 1 : end;
        if (end > p && end[-1] == '\r')
            end--;
        *end = 0;
        ARRAY_GROW(w->word, cap, w->n + 1);
        w->word[w->n++] = p;
        p = next;
    }
    w->mask = 1;
    while (w->mask < 2 * w->n + 2)
        w->mask *= 2;
    w->slot = xmalloc(w->mask * sizeof *w->slot);
    memset(w->slot, 0xff, w->mask * sizeof *w->slot);
    w->mask--;
    for (size_t id = 0; id < w->n; id++) {
        size_t i = fnv1a(FNV_INIT, w->word[id], strlen(w->word[id])) & w->mask;
        while (w->slot[i] >= 0)
            i = (i + 1) & w->mask;
        w->slot[i] = (int32_t)id;
    }
    w->cls = look_up(w, "[CLS]", 5);
    w->sep = look_up(w, "[SEP]", 5);
    w->unk = look_up(w, "[UNK]", 5);
    if (w->cls < 0 || w->sep < 0 || w->unk < 0)
        rc = err_set(ERR_FORMAT, "%s: is no BERT vocabulary ([CLS], [SEP] or [UNK] is missing)", path);
    free(path);
    if (rc < 0)
        wordpiece_free(w);
    else
        *out = w;
    return rc;
}

void wordpiece_free(struct wordpiece *w)
{
    if (!w)
        return;
    free(w->text);
    free(w->word);
    free(w->slot);
    free(w);
}

static bool is_cjk(int32_t c)
{
    return (c >= 0x4e00 && c <= 0x9fff) || (c >= 0x3400 && c <= 0x4dbf) || (c >= 0x20000 && c <= 0x2a6df) ||
           (c >= 0x2a700 && c <= 0x2b73f) || (c >= 0x2b740 && c <= 0x2b81f) || (c >= 0x2b820 && c <= 0x2ceaf) ||
           (c >= 0xf900 && c <= 0xfaff) || (c >= 0x2f800 && c <= 0x2fa1f);
}

static bool is_punctuation(int32_t c)
{
    if ((c >= 33 && c <= 47) || (c >= 58 && c <= 64) || (c >= 91 && c <= 96) || (c >= 123 && c <= 126))
        return true;
    utf8proc_category_t k = utf8proc_category(c);
    return k >= UTF8PROC_CATEGORY_PC && k <= UTF8PROC_CATEGORY_PO;
}

static bool is_space(int32_t c)
{
    return c == ' ' || c == '\t' || c == '\n' || c == '\r' || utf8proc_category(c) == UTF8PROC_CATEGORY_ZS;
}

static bool is_dropped(int32_t c)
{
    utf8proc_category_t k = utf8proc_category(c);
    return c == 0 || c == 0xfffd || k == UTF8PROC_CATEGORY_CC || k == UTF8PROC_CATEGORY_CF || k == UTF8PROC_CATEGORY_CO ||
           k == UTF8PROC_CATEGORY_CS;
}

/* One word (characters' bytes in b, their ends in end[]) as its longest pieces. */
static void add_word(const struct wordpiece *w, const struct buf *b, const size_t *end, size_t n, struct tok_ids *out)
{
    size_t before = out->n, from = 0;
    char piece[8 + 4 * MAX_WORD];
    if (n > MAX_WORD) {
        tok_ids_add(out, w->unk);
        return;
    }
    while (from < n) {
        size_t start = from ? end[from - 1] : 0, prefix = from ? 2 : 0, to = n;
        int32_t id = -1;
        memcpy(piece, "##", 2);
        for (; to > from && id < 0; to--) {
            memcpy(piece + prefix, b->s + start, end[to - 1] - start);
            id = look_up(w, piece, prefix + end[to - 1] - start);
        }
        if (id < 0) {
            out->n = before;
            tok_ids_add(out, w->unk);
            return;
        }
        tok_ids_add(out, id);
        from = to + 1;
    }
}

void wordpiece_encode(const struct wordpiece *w, const char *text, size_t n, size_t max_tokens, struct tok_ids *out)
{
    struct buf word = BUF_INIT;
    size_t *end = NULL, n_chars = 0, cap = 0, start = out->n;
    tok_ids_add(out, w->cls);
    for (size_t at = 0; at <= n && out->n - start < max_tokens;) {
        int32_t c = ' ';
        utf8proc_ssize_t used = at < n ? utf8proc_iterate((const uint8_t *)text + at, (utf8proc_ssize_t)(n - at), &c) : 1;
        bool bad = used < 1;
        at += bad ? 1 : (size_t)used;
        if (bad || (is_dropped(c) && !is_space(c)))
            continue;
        bool alone = is_punctuation(c) || is_cjk(c);
        if ((is_space(c) || alone) && n_chars) {
            add_word(w, &word, end, n_chars, out);
            buf_clear(&word);
            n_chars = 0;
        }
        if (is_space(c))
            continue;
        /* lower case, decomposed, less the marks */
        int32_t parts[18];
        utf8proc_ssize_t k = utf8proc_decompose_char(c, parts, 18, UTF8PROC_DECOMPOSE, NULL);
        for (utf8proc_ssize_t i = 0; i < k && i < 18; i++) {
            uint8_t bytes[4];
            if (utf8proc_category(parts[i]) == UTF8PROC_CATEGORY_MN)
                continue;
            buf_add(&word, bytes, (size_t)utf8proc_encode_char(utf8proc_tolower(parts[i]), bytes));
            ARRAY_GROW(end, cap, n_chars + 1);
            end[n_chars++] = word.n;
        }
        if (alone && n_chars) {
            add_word(w, &word, end, n_chars, out);
            buf_clear(&word);
            n_chars = 0;
        }
    }
    if (out->n - start > max_tokens - 1)
        out->n = start + max_tokens - 1;
    tok_ids_add(out, w->sep);
    buf_release(&word);
    free(end);
}
