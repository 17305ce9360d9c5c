/* Every reader of Part 21 text on arbitrary bytes.  The first byte chooses; what a strict
 * tool makes must parse, and doing it again must change nothing. */
#include <stdio.h>
#include <stdlib.h>

#include "lib/err.h"
#include "lib/step_prep.h"
#include "lib/step_reference.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void check(bool good, const char *what)
{
    if (!good) {
        fprintf(stderr, "broken: %s (%s)\n", what, err_text());
        abort();
    }
}

static void assert_parses(const struct buf *b, const char *what)
{
    struct step_file *f;
    check(step_parse("out", b->s, b->n, STEP_NO_HEADER, &f) == ERR_OK, what);
    step_free(f);
}

static size_t count(const char *s, size_t n)
{
    struct step_file *f;
    if (step_parse("in", s, n, STEP_NO_HEADER, &f) < 0)
        return SIZE_MAX;
    n = f->n;
    step_free(f);
    return n;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    if (!size)
        return 0;
    /* An allocation of the exact size, so that a read past the end is seen. */
    size_t n = size - 1;
    char *s = malloc(n ? n : 1);
    memcpy(s, data + 1, n);
    struct buf out = BUF_INIT, twice = BUF_INIT, compact = BUF_INIT;
    struct step_restructure_opts opts;
    struct step_round_report rounded;
    struct step_restructure_report order;
    struct step_restore_report restored;
    struct step_reference_report reference;
    struct step_file *f;
    const char *part;
    size_t part_n;
    bool complete;
    switch (data[0] % 8) {
    case 0:
        if (step_parse("in", s, n, data[0] >> 4, &f) == ERR_OK) {
            for (size_t i = 0; i < f->n; i++) {
                const char *p = NULL;
                struct step_token k, v;
                buf_clear(&out);
                step_put(f, &f->v[i], NULL, &out);
                while (step_part(f, &f->v[i], &p, &k, &v))
                    ;
                step_param(f->text + f->v[i].par, f->v[i].par_len, i % 3, &v);
            }
            step_free(f);
        }
        break;
    case 1:
        if (step_round("in", s, n, &STEP_ROUND_DEFAULT, &out, &rounded) == ERR_OK) {
            assert_parses(&out, "rounded");
            check(step_round("out", out.s, out.n, &STEP_ROUND_DEFAULT, &twice, &rounded) == ERR_OK, "rounded twice");
            check(out.n == twice.n && !memcmp(out.s, twice.s, out.n), "rounding again changes");
        }
        break;
    case 2:
        opts = (struct step_restructure_opts){.order = (enum step_order)((data[0] >> 6) % 3)};
        if (step_restructure("in", s, n, &opts, &out, &order) == ERR_OK) {
            assert_parses(&out, "restructured");
            check(count(out.s, out.n) == count(s, n), "an instance was lost");
            opts.compact = true;
            opts.relative = data[0] >> 5 & 1;
            check(step_restructure("in", s, n, &opts, &compact, &order) == ERR_OK, "compact fails");
            step_expand(compact.s, compact.n, &twice);
            check(!step_is_compact(compact.s, compact.n) || (out.n == twice.n && !memcmp(out.s, twice.s, out.n)), "compact loses");
        }
        step_expand(s, n, &twice);
        break;
    case 3:
        if (step_restore("in", s, n, &out, &restored) == ERR_OK) {
            check(step_restore("out", out.s, out.n, &twice, &restored) == ERR_OK, "restored twice");
            check(out.n == twice.n && !memcmp(out.s, twice.s, out.n), "restoring again changes");
        }
        break;
    case 4:
        step_reference_round(s, n, 6, &out);
        break;
    case 5:
        step_reference_restructure("in", s, n, &out, &reference);
        break;
    case 6:
        step_reference_restore(s, n, &out);
        step_reference_complete("in", s, n, &complete);
        step_reference_max_id(s, n);
        break;
    case 7:
        if (step_data_part(s, n, &part, &part_n))
            step_with_header(part, part_n, &out);
        step_with_header(s, n, &out);
        step_string_encode(s, n, &twice);
        check(step_string_decode(twice.s, twice.n, &out), "an encoded string does not decode");
        break;
    }
    buf_release(&out);
    buf_release(&twice);
    buf_release(&compact);
    free(s);
    return 0;
}
