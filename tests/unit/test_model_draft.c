/* Drafts: what must follow in STEP text is guessed, and guessing changes nothing that is known. */
#include "tests/unit/testutil.h"

#include "model/draft.h"

static struct tok *tok;

static int set_up(void **state)
{
    (void)state;
    return tok_load("tests/golden/tokenizer/small-qwen.json", &tok);
}

static int tear_down(void **state)
{
    (void)state;
    tok_free(tok);
    return 0;
}

static void add(struct draft *d, const char *text)
{
    struct tok_ids ids = {0};
    assert_int_equal(tok_encode(tok, text, strlen(text), false, &ids), ERR_OK);
    for (size_t i = 0; i < ids.n; i++)
        draft_add(d, ids.v[i]);
    tok_ids_release(&ids);
}

/* The text of a guess; the caller frees. */
static char *guess(struct draft *d, size_t n)
{
    int32_t out[64];
    struct buf b = BUF_INIT;
    n = draft_guess(d, out, n, NULL);
    assert_int_equal(tok_decode(tok, out, n, false, &b), ERR_OK);
    return buf_detach(&b);
}

static void expect(struct draft *d, const char *begin)
{
    char *s = guess(d, 40);
    if (strncmp(s, begin, strlen(begin)))
        fail_msg("guessed '%s', not '%s...'", s, begin);
    free(s);
}

/* A row of squares: each its corners, edges, loop. */
static void square(struct buf *b, int *id, int k, bool compact)
{
    int v[4], o[4], n = *id;
    for (int i = 0; i < 4; i++) {
        int p = ++n;
        buf_printf(b, compact ? "" : "#%d=", p);
        buf_printf(b, "CARTESIAN_POINT('',(%d.,%d.,0.));\n", 10 * k + (i == 1 || i == 2 ? 7 : 0), i > 1 ? 5 : 0);
        v[i] = ++n;
        buf_printf(b, compact ? "" : "#%d=", n);
        buf_printf(b, "VERTEX_POINT('',#%d);\n", compact ? 1 : p);
    }
    for (int i = 0; i < 4; i++) {
        int e = ++n;
        buf_printf(b, compact ? "" : "#%d=", e);
        buf_printf(b, "EDGE_CURVE('',#%d,#%d,$,.T.);\n", compact ? e - v[i] : v[i], compact ? e - v[(i + 1) % 4] : v[(i + 1) % 4]);
        o[i] = ++n;
        buf_printf(b, compact ? "" : "#%d=", n);
        buf_printf(b, "ORIENTED_EDGE('',*,*,#%d,.T.);\n", compact ? 1 : e);
    }
    int l = ++n;
    buf_printf(b, compact ? "" : "#%d=", l);
    buf_printf(b, "EDGE_LOOP('',(#%d,#%d,#%d,#%d));\n", compact ? l - o[0] : o[0], compact ? l - o[1] : o[1], compact ? l - o[2] : o[2], compact ? l - o[3] : o[3]);
    *id = n;
}

static void references_move_with_their_lines(void **state)
{
    (void)state;
    for (int compact = 0; compact < 2; compact++) {
        struct draft *d = draft_new(tok, NULL);
        struct buf b = BUF_INIT;
        int id = 0;
        buf_puts(&b, "DATA;\n");
        for (int k = 0; k < 6; k++)
            square(&b, &id, k, compact);
        add(d, b.s);
        expect(d, compact ? "CARTESIAN_POINT('',(" : "#103=CARTESIAN_POINT('',(");
        add(d, compact ? "CARTESIAN_POINT('',(60.,0.,0.));\n" : "#103=CARTESIAN_POINT('',(60.,0.,0.));\n");
        expect(d, compact ? "VERTEX_POINT('',#1);\nCARTESIAN_POINT('',(" : "#104=VERTEX_POINT('',#103);\n#105=CARTESIAN_POINT('',(");
        /* from within an instance's name, a keyword, a reference */
        if (!compact) {
            add(d, "#1");
            expect(d, "04=VERTEX_POINT('',#103);");
            add(d, "04=VERTEX_POINT('',#10");
            expect(d, "3);\n#105=CARTESIAN");
        }
        draft_free(d);
        buf_release(&b);
    }
}

/* A second part that begins like the first: it goes on like it, with its own numbers. */
static void the_retrieved_part_is_the_draft(void **state)
{
    (void)state;
    struct draft *d = draft_new(tok, NULL);
    add(d, "### retrieved relevant step file:\nDATA;\n#1=APPLICATION_CONTEXT('automotive design');\n#2=PRODUCT_CONTEXT('',#1,'mechanical');\n"
           "#3=PRODUCT('plate','plate','',(#2));\n#4=PRODUCT_DEFINITION_FORMATION('','',#3);\nENDSEC;\nEND-ISO-10303-21;\n\n### output:\n"
           "DATA;\n#1=APPLICATION_CONTEXT('automotive design');\n#2=PRODUCT_CONTEXT('',#1,'mech");
    expect(d, "anical');\n#3=PRODUCT('plate','plate','',(#2));\n#4=PROD");
    draft_free(d);
}

static void guessing_changes_nothing(void **state)
{
    (void)state;
    struct buf b = BUF_INIT;
    struct tok_ids ids = {0};
    int id = 0;
    buf_puts(&b, "A caption, it's of a part.\nDATA;\n");
    for (int k = 0; k < 5; k++)
        square(&b, &id, k, false);
    buf_puts(&b, "#7=(A(#7)B((#1,#2),3.5E-2,-1.,.F.,'it''s'));\n#9999999999999=X(#-3,#);\n/* END */\n");
    for (int k = 0; k < 2; k++)
        square(&b, &id, k, true);
    assert_int_equal(tok_encode(tok, b.s, b.n, false, &ids), ERR_OK);
    struct draft *asked = draft_new(tok, NULL);
    for (size_t i = 0; i < ids.n; i++) {
        int32_t a[64], c[64];
        for (size_t k = 1; k < 64; k *= 3)
            assert_in_range(draft_guess(asked, a, k, NULL), 0, k);
        size_t n = draft_guess(asked, a, 20, NULL);
        if (i % 50 == 0) { /* that one is asked for the first time */
            struct draft *fresh = draft_new(tok, NULL);
            for (size_t k = 0; k < i; k++)
                draft_add(fresh, ids.v[k]);
            assert_int_equal(draft_guess(fresh, c, 20, NULL), n);
            assert_memory_equal(a, c, n * sizeof *a);
            draft_free(fresh);
        }
        draft_add(asked, ids.v[i]);
    }
    draft_free(asked);
    tok_ids_release(&ids);
    buf_release(&b);
}

static void dear_columns_are_fewer(void **state)
{
    (void)state;
    struct draft *d = draft_new(tok, NULL);
    struct buf b = BUF_INIT;
    int32_t out[64];
    int id = 0;
    for (int k = 0; k < 6; k++)
        square(&b, &id, k, false);
    add(d, b.s);
    size_t cheap = draft_guess(d, out, 60, &(struct draft_cost){1, 0.001, NULL}), dear = draft_guess(d, out, 60, &(struct draft_cost){1, 1, NULL});
    assert_true(cheap > dear);
    assert_in_range(draft_guess(d, out, 3, NULL), 1, 3);
    /* Where a pass is for 1, 8 or 32 columns, what is guessed fills one of them unless the guesses end before. */
    static const int wide[] = {1, 8, 32, 0};
    size_t all = draft_guess(d, out, 31, NULL), some = draft_guess(d, out, 31, &(struct draft_cost){1, 0.2, wide});
    assert_int_equal(all, 31);
    assert_true(some == 7 || some == 31);
    assert_int_equal(draft_guess(d, out, 60, &(struct draft_cost){0, 1, wide}), 0);
    assert_int_equal(draft_wide(wide, 1), 1);
    assert_int_equal(draft_wide(wide, 9), 32);
    assert_int_equal(draft_wide(wide, 33), 33);
    assert_int_equal(draft_wide(NULL, 9), 9);
    assert_int_equal(draft_guess(d, out, 0, NULL), 0);
    draft_free(d);
    buf_release(&b);
}

static void experience_is_handed_on(void **state)
{
    (void)state;
    struct draft *d = draft_new(tok, NULL);
    struct buf b = BUF_INIT;
    int id = 0;
    for (int k = 0; k < 6; k++)
        square(&b, &id, k, false);
    add(d, "DATA;\n");
    add(d, b.s);
    struct draft *next = draft_new(tok, d);
    draft_free(d);
    add(next, "DATA;\n#1=CARTESIAN_POINT('',(1.,2.,3.));\n");
    expect(next, "#2=VERTEX_POINT('',#1);\n#3=CARTESIAN_POINT('',(");
    draft_free(next);
    buf_release(&b);
}

/* Anything may stand in a prompt. */
static void any_tokens_will_do(void **state)
{
    (void)state;
    uint64_t z = 1;
    int32_t out[64];
    for (int kind = 0; kind < 3; kind++) {
        struct draft *d = draft_new(kind == 2 ? NULL : tok, NULL);
        char number[40];
        for (int i = 0; i < 20000; i++) {
            z = z * 6364136223846793005u + 1442695040888963407u;
            if (kind == 1) { /* numbers and words without end: what is remembered has a limit */
                if (i % 2)
                    snprintf(number, sizeof number, "#%d=X%u(", i, (unsigned)(z >> 33));
                else
                    snprintf(number, sizeof number, "%.6f,'%u',#", (double)(z >> 40) / 7, (unsigned)(z >> 33));
                add(d, number);
            } else {
                draft_add(d, (int32_t)((z >> 33) % (uint64_t)tok_n_ids(tok)));
            }
            if (i % 16 == 0)
                assert_in_range(draft_guess(d, out, 16, NULL), 0, 16);
        }
        draft_free(d);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(references_move_with_their_lines), cmocka_unit_test(the_retrieved_part_is_the_draft),
        cmocka_unit_test(guessing_changes_nothing),         cmocka_unit_test(dear_columns_are_fewer),
        cmocka_unit_test(experience_is_handed_on),          cmocka_unit_test(any_tokens_will_do),
    };
    return cmocka_run_group_tests_name("model_draft", tests, set_up, tear_down);
}
