/* The grammar on arbitrary choices, and its entity table on arbitrary bytes.  The first byte chooses; of the rest, each
 * picks one of the permitted tokens, and what comes out must be valid. */
#include "lib/schema.h"
#include "tests/grammar/walks.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void check(bool good, const char *what)
{
    if (!good) {
        fprintf(stderr, "broken: %s (%s)\n", what, err_text());
        abort();
    }
}

static void table(const char *s, size_t n)
{
    struct schema *a = schema_new(), *b = schema_new();
    struct buf out = BUF_INIT, again = BUF_INIT;
    if (schema_read(a, "in", s, n) == ERR_OK) {
        schema_write(a, &out);
        check(schema_read(b, "out", out.s, out.n) == ERR_OK, "a written table does not read");
        schema_write(b, &again);
        check(out.n == again.n && !memcmp(out.s, again.s, out.n), "a table read again differs");
    }
    buf_release(&out);
    buf_release(&again);
    schema_free(a);
    schema_free(b);
}

static void text(struct walk *k, const uint8_t *p, size_t n, int64_t budget)
{
    struct grammar_state *s;
    struct tok_stream stream = {0};
    struct buf out = BUF_INIT, whole = BUF_INIT, valid = BUF_INIT;
    struct step_restore_report report;
    struct step_file *f;
    uint32_t *w = xcalloc(k->n_words, sizeof *w);
    check(grammar_state_new(k->g, budget, &s) == ERR_OK, "budget");
    while (!grammar_done(s)) {
        uint32_t chosen = 0, count = 0;
        memset(w, 0, k->n_words * sizeof *w);
        grammar_fill(s, w, k->n_words);
        for (size_t i = 0; i < k->n_words; i++)
            count += (uint32_t)__builtin_popcount(w[i]);
        check(count > 0, "nothing is permitted");
        chosen = n ? (uint32_t)((*p * 0x9e3779b1u >> 8) % count) : count - 1;
        p += n > 0;
        n -= n > 0;
        int32_t id = 0;
        for (;; id++)
            if (has_bit(w, id) && !chosen--)
                break;
        check(grammar_accept(s, id), "a token of the mask is not accepted");
        tok_stream_push(k->t, &stream, id, true, &out);
    }
    tok_stream_end(&stream, &out);
    step_with_header(out.s, out.n, &whole);
    check(step_restore("out", whole.s, whole.n, &valid, &report) == ERR_OK, "not restored");
    check(step_parse("out", valid.s, valid.n, 0, &f) == ERR_OK, "not valid");
    check(f->n_dangling == 0, "a reference dangles");
    check(f->n == grammar_entities(s), "instances lost");
    step_free(f);
    grammar_state_free(s);
    buf_release(&out);
    buf_release(&whole);
    buf_release(&valid);
    free(w);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static const char *const forms[] = {"children", "children-typed", "compact", "compact-typed", "parent", "reference"};
    static struct walk walks[ARRAY_LEN(forms)];
    if (size < 2)
        return 0;
    size_t form = data[0] % 8;
    if (form >= ARRAY_LEN(forms)) {
        char *s = xmalloc(size - 1); /* of the exact size: a read past the end is seen */
        memcpy(s, data + 1, size - 1);
        table(s, size - 1);
        free(s);
        return 0;
    }
    if (!walks[form].g)
        check(walk_open(&walks[form], "tests/golden/tokenizer/small-qwen.json", forms[form]) == ERR_OK, "the grammar");
    text(&walks[form], data + 2, size - 2, 60 + data[1] * 4);
    return 0;
}
