#include "testutil.h"

#include "lib/schema.h"
#include "tests/grammar/walks.h"

static const char *const tokenizers[] = {"tests/golden/tokenizer/small-qwen.json", "tests/golden/tokenizer/small-llama.json",
                                         "models/demo"};
static const char *const forms[] = {"children", "children-typed", "compact", "compact-typed", "parent", "reference"};

static void every_token_of_the_sample_is_permitted(void **state)
{
    (void)state;
    struct file_list files = {0};
    assert_int_equal(file_list_add(&files, "datasets/sample/steps", STEP_SUFFIXES), ERR_OK);
    assert_true(files.n >= 100);
    for (size_t t = 0; t < ARRAY_LEN(tokenizers); t++)
        for (size_t f = 0; f < 5; f++) {
            struct walk k;
            if (!path_exists(tokenizers[t]))
                continue;
            assert_int_equal(walk_open(&k, tokenizers[t], forms[f]), ERR_OK);
            struct step_restructure_opts o = {.order = k.opts.promises ? STEP_PARENT_FIRST : STEP_CHILDREN_FIRST, .compact = k.opts.compact};
            for (size_t i = t; i < files.n; i += 5) {
                struct file_map m;
                struct buf out = BUF_INIT;
                struct step_restructure_report r;
                assert_int_equal(file_map(files.v[i].path, 0, &m), ERR_OK);
                o.bare = i % 2;
                assert_int_equal(step_restructure(files.v[i].path, m.data, m.size, &o, &out, &r), ERR_OK);
                assert_int_equal(walk_text(&k, files.v[i].path, out.s, out.n, i % 10 == 0), 0);
                buf_release(&out);
                file_unmap(&m);
            }
            walk_close(&k);
        }
    file_list_release(&files);
}

static void random_texts_are_valid_whatever_the_budget(void **state)
{
    (void)state;
    static const int64_t budgets[] = {60, 90, 200, 700};
    for (size_t t = 0; t < ARRAY_LEN(tokenizers); t++)
        for (size_t f = 0; f < ARRAY_LEN(forms); f++) {
            struct walk k;
            if (!path_exists(tokenizers[t]))
                continue;
            assert_int_equal(walk_open(&k, tokenizers[t], forms[f]), ERR_OK);
            for (size_t b = 0; b < ARRAY_LEN(budgets); b++)
                for (int i = 0; i < (budgets[b] < 500 ? 25 : 5); i++)
                    assert_int_equal(walk_random(&k, budgets[b]), 0);
            assert_true(k.entities > 120);
            walk_close(&k);
        }
}

/* Text s, byte by byte where there is no longer way: whether all of it is permitted. */
static bool permitted(struct walk *k, const char *s)
{
    struct grammar_state *g;
    bool good = true;
    assert_int_equal(grammar_state_new(k->g, 5000, &g), ERR_OK);
    for (; *s && good; s++) {
        struct buf one = BUF_INIT;
        tok_spell(s, 1, &one);
        good = grammar_accept(g, tok_find(k->t, one.s));
        buf_release(&one);
    }
    grammar_state_free(g);
    return good;
}

static void what_is_wrong_is_refused(void **state)
{
    (void)state;
    static const struct {
        bool good;
        const char *form, *text;
    } cases[] = {
        {true, "children", "DATA;\n#1=CARTESIAN_POINT('',(0.,1.5,-2.E-3));\n#2=VERTEX_POINT('',#1);\nENDSEC;\nEND-ISO-10303-21;"},
        {false, "children", "DATA;\n#2="},                                       /* numbers count from 1 */
        {false, "children", "DATA;\nENDSEC"},                                     /* empty */
        {false, "children", "DATA;\n#1=CARTESIAN_POINT('',(0.,1.,2.));\n#1="},    /* twice */
        {false, "children", "DATA;\n#1=NO_SUCH_ENTITY("},
        {false, "children", "DATA;\n#1=VERTEX_POINT('',#"},                       /* nothing to refer to */
        {false, "children", "DATA;\n#1=VERTEX_POINT("},
        {false, "children", "DATA;\n#1=CARTESIAN_POINT('',(0.,1.,2.));\n#2=VERTEX_POINT('',#2"}, /* itself */
        {false, "children", "DATA;\n#1=CARTESIAN_POINT('',(0.,1.,2.));\n#2=VERTEX_POINT('',#01"},
        {false, "children", "DATA;\n#1=CARTESIAN_POINT('',(0.,1.,2.,3.)"},        /* four coordinates */
        {false, "children", "DATA;\n#1=CARTESIAN_POINT('',(0"
                            ",1.)"},                                              /* an integer for a real */
        {false, "children", "DATA;\n#1=CARTESIAN_POINT((0.,1.,2.)"},              /* no name */
        {false, "children", "DATA;\n#1=CARTESIAN_POINT('',(0.,1.,2.),$"},         /* one too many */
        {false, "children", "DATA;\n#1=CARTESIAN_POINT('',(0.,1.,2.);"},          /* unbalanced */
        {false, "children", "DATA;\n#1=CARTESIAN_POINT('\n"},                     /* control characters in strings */
        {true, "children", "DATA;\n#1=CARTESIAN_POINT('it''s \\X2\\00FC\\X0\\ \\S\\D \xc3\xbc',(0.,1.,2.));"},
        {false, "children", "DATA;\n#1=CARTESIAN_POINT('\\X2\\00F\\X0"},
        {false, "children", "DATA;\n#1=CARTESIAN_POINT('\\q"},
        {false, "children", "DATA;\n#1=CARTESIAN_POINT('\xc3'"},                  /* half a character */
        {false, "children", "DATA;\n#1=CARTESIAN_POINT('\xed\xa0"},               /* a surrogate */
        {false, "children", "DATA;\n#1=CARTESIAN_POINT('',(1.E+999"},
        {true, "children", "DATA;\n/* SHAPE_DEFINITION_REPRESENTATION Section - 1 root */\n#1=CARTESIAN_POINT("},
        {true, "children", "DATA;\n/* Unattached Section - 12 roots */\n#1=CARTESIAN_POINT("},
        {false, "children", "DATA;\n/* Unattached Section - 12 roots */\nENDSEC"}, /* a title without instance */
        {false, "children", "DATA;\n/* Unattached Section - 1 roots"},
        {false, "children", "DATA;\n/* anything"},
        {false, "children", "DATA;\n#1 ="},
        {false, "children-typed", "DATA;\n#1=DIRECTION('',(0.,1.,2.));\n#2=VERTEX_POINT("}, /* no point to refer to */
        {true, "children", "DATA;\n#1=DIRECTION('',(0.,1.,2.));\n#2=VERTEX_POINT('',#1"},
        {false, "children-typed", "DATA;\n#1=DIRECTION('',(0.,1.,2.));\n#2=CARTESIAN_POINT('',(0.,1.,2.));\n#3=VERTEX_POINT('',#1"},
        {true, "children-typed", "DATA;\n#1=DIRECTION('',(0.,1.,2.));\n#2=CARTESIAN_POINT('',(0.,1.,2.));\n#3=VERTEX_POINT('',#2"},
        {true, "children", "DATA;\n#1=(LENGTH_UNIT()NAMED_UNIT(*)SI_UNIT(.MILLI.,.METRE.));"},
        {false, "children", "DATA;\n#1=(LENGTH_UNIT()SI_UNIT"},
        {false, "children", "DATA;\n#1=(LENGTH_UNIT()NAMED_UNIT(*)SI_UNIT(.MILLE."},
        {true, "parent", "DATA;\n#1=VERTEX_POINT('',#3);\n#2=DIRECTION('',(0.,1.,2.));\n#3=CARTESIAN_POINT('',(0.,1.,2.));\nENDSEC;"},
        {false, "parent", "DATA;\n#1=VERTEX_POINT('',#3);\n#2=DIRECTION('',(0.,1.,2.));\nENDSEC"}, /* #3 was promised */
        {false, "parent", "DATA;\n#1=VERTEX_POINT('',#99999"},                     /* more than the budget holds */
        {true, "compact", "DATA;\nCARTESIAN_POINT('',(0.,1.,2.));\nVERTEX_POINT('',#1);\nENDSEC;"},
        {false, "compact", "DATA;\nCARTESIAN_POINT('',(0.,1.,2.));\nVERTEX_POINT('',#2"},
        {false, "compact", "DATA;\nCARTESIAN_POINT('',(0.,1.,2.));\nVERTEX_POINT('',#-"},
        {false, "compact", "DATA;\nENDSEC"},
        {true, "reference", "DATA;\n#1 = CARTESIAN_POINT ( '' ,\n ( 0. , 1. , 2. ) ) ;\n/* said */ ENDSEC;\nEND-ISO-10303-21;"},
        {true, "reference", "DATA;\n#1=MECHANICAL_DESIGN_GEOMETRIC_PRESENTATION_REPRESENTATION('',(#ID_1),#2);\n/* ID_1 = 2 */"},
        {false, "reference", "DATA;\n#1=CARTESIAN_POINT('',(0.,1.,2.));\n/* ID_1 = 3 */\n#2=CARTESIAN_POINT('',(0.,1.,2.));\nENDSEC"},
        {true, "reference", "DATA;\n#1=COLOUR_RGB( , 0.5, 0.5, 0.5 );"},
        {false, "reference", "DATA;\n#1=DIRECTION( ,"},
    };
    for (size_t f = 0; f < ARRAY_LEN(forms); f++) {
        struct walk k;
        assert_int_equal(walk_open(&k, tokenizers[0], forms[f]), ERR_OK);
        for (size_t i = 0; i < ARRAY_LEN(cases); i++)
            if (!strcmp(cases[i].form, forms[f]) && permitted(&k, cases[i].text) != cases[i].good)
                fail_msg("%s should be %s: %s", cases[i].text, cases[i].good ? "permitted" : "refused", forms[f]);
        walk_close(&k);
    }
}

static void a_text_ends_within_its_budget_and_too_small_ones_are_refused(void **state)
{
    (void)state;
    struct walk k;
    struct grammar_state *s;
    assert_int_equal(walk_open(&k, tokenizers[0], "children"), ERR_OK);
    assert_int_equal(grammar_state_new(k.g, 5, &s), ERR_USAGE);
    assert_non_null(strstr(err_text(), "the grammar needs"));
    int64_t least = 5;
    while (grammar_state_new(k.g, least, &s) < 0)
        least++;
    assert_int_equal(grammar_need(s), least);
    grammar_state_free(s);
    for (int64_t b = least; b < least + 40; b++)
        assert_int_equal(walk_random(&k, b), 0);
    walk_close(&k);
}

static void a_draft_can_be_taken_back(void **state)
{
    (void)state;
    for (size_t f = 0; f < ARRAY_LEN(forms); f++) {
        struct walk k;
        struct grammar_state *s;
        struct token_mask m;
        uint64_t place[TOKEN_MASK_MARK / 8];
        assert_int_equal(walk_open(&k, tokenizers[0], forms[f]), ERR_OK);
        uint32_t *before = xcalloc(k.n_words, sizeof *before), *w = xcalloc(k.n_words, sizeof *w);
        assert_int_equal(grammar_state_new(k.g, 900, &s), ERR_OK);
        grammar_token_mask(s, &m);
        assert_int_equal(m.n_words, k.n_words);
        for (int64_t left = 900; !m.done(m.ctx); left--) {
            int32_t first = -1;
            m.fill(m.ctx, left, before);
            m.mark(m.ctx, place);
            for (int i = 0; i < 12 && !m.done(m.ctx); i++) {
                m.fill(m.ctx, left - i, w);
                int32_t id = closing(&k, w);
                id = id < 0 ? pick(&k, w) : id;
                assert_true(m.allows(m.ctx, id, left - i));
                m.take(m.ctx, id);
                first = first < 0 ? id : first;
            }
            m.rollback(m.ctx, place);
            m.fill(m.ctx, left, w);
            assert_memory_equal(w, before, k.n_words * sizeof *w);
            assert_int_equal(grammar_left(s), left);
            m.take(m.ctx, first);
        }
        grammar_state_free(s);
        free(before);
        free(w);
        walk_close(&k);
    }
}

static void end_tokens_come_at_the_end_alone(void **state)
{
    (void)state;
    struct walk k;
    struct grammar_state *s;
    assert_int_equal(walk_open(&k, "tests/golden/tokenizer/small-qwen.json", "children"), ERR_OK);
    assert_int_equal(grammar_state_new(k.g, 500, &s), ERR_OK);
    assert_false(grammar_permits(s, -1));
    assert_false(grammar_permits(s, tok_n_ids(k.t)));
    for (int32_t id = 0; id < tok_n_ids(k.t); id++)
        if (tok_is_special(k.t, id) || tok_is_stop(k.t, id))
            assert_false(grammar_permits(s, id));
    grammar_state_free(s);
    walk_close(&k);
}

static void a_table_says_what_was_seen_and_reads_back(void **state)
{
    (void)state;
    static const char text[] = "DATA;\n#1=A('x',(1.,2.),.T.,$);\n#2=A('y',(1.,2.,3.),.F.,#1);\n#3=B((#1,#2),LENGTH_MEASURE(1.),3);\n"
                               "#4=(C()D(*,.X.));\n#5=B((),$,3);\nENDSEC;\nEND-ISO-10303-21;\n";
    static const char due[] = "c\tC+D\np\tC\t0\np\tD\t2\t*\t.X.\ns\tA\t4\tstr\t[2,3:real]\t.F.|.T.\t$|#A\n"
                              "s\tB\t3\t[0,0:#A]\t$|LENGTH_MEASURE(real)\tint\n";
    struct step_file *f;
    struct schema *s = schema_new();
    struct buf out = BUF_INIT, again = BUF_INIT;
    assert_int_equal(step_parse("t", text, strlen(text), STEP_NO_HEADER, &f), ERR_OK);
    assert_int_equal(schema_learn(s, f), 0);
    step_free(f);
    schema_write(s, &out);
    assert_string_equal(out.s, due);
    schema_free(s);
    s = schema_new();
    assert_int_equal(schema_read(s, "t", out.s, out.n), ERR_OK);
    schema_write(s, &again);
    assert_string_equal(again.s, due);
    schema_free(s);
    buf_release(&out);
    buf_release(&again);
}

static void a_damaged_table_is_refused_with_its_line(void **state)
{
    (void)state;
    static const struct {
        const char *text, *why;
    } cases[] = {
        {"s\tA\t1\tstr\nx\n", "t:2: no line"}, {"s\tA\t1\tstrange\n", "t:1:"}, {"s\tA\t1\t[1,2:real\n", "t:1:"}, {"s\tA\t1\t.X\n", "t:1:"},
        {"s\ta\t1\tstr\n", "t:1:"}, {"s\tA\t64\tstr\n", "t:1:"}, {"s\tA\n", "t:1:"}, {"c\tA+B\n", "its part A is not"},
        {"c\tA+\n", "t:1:"}, {"s\tA\t2\tstr\n", "no pattern for parameter 2"}, {"s\tA\t1\tX((real))\n", "t:1:"},
        {"s\tA\t1\t[1,0:[1,0:[1,0:[1,0:[1,0:[1,0:[1,0:real]]]]]]]\n", "t:1:"},
    };
    for (size_t i = 0; i < ARRAY_LEN(cases); i++) {
        struct schema *s = schema_new();
        if (schema_read(s, "t", cases[i].text, strlen(cases[i].text)) != ERR_FORMAT || !strstr(err_text(), cases[i].why))
            fail_msg("%s: '%s' is due, not '%s'", cases[i].text, cases[i].why, err_text());
        schema_free(s);
    }
    struct walk k;
    struct schema *s = schema_new();
    struct grammar *g;
    static const char useless[] = "s\tA\t1\t#A\n";
    assert_int_equal(walk_open(&k, tokenizers[0], "children"), ERR_OK);
    assert_int_equal(schema_read(s, "t", useless, strlen(useless)), ERR_OK);
    assert_int_equal(grammar_new(k.t, &(struct grammar_opts){.schema = s}, &g), ERR_FORMAT);
    assert_non_null(strstr(err_text(), "no instance without references"));
    schema_free(s);
    walk_close(&k);
}

static void the_table_of_the_program_knows_the_usual_entities(void **state)
{
    (void)state;
    const struct schema *s = schema_known();
    static const char *const names[] = {"CARTESIAN_POINT", "ADVANCED_FACE", "B_SPLINE_SURFACE_WITH_KNOTS", "MANIFOLD_SOLID_BREP"};
    for (size_t i = 0; i < ARRAY_LEN(names); i++)
        assert_non_null(schema_find(s, 's', names[i], strlen(names[i])));
    const struct schema_entity *e = schema_find(s, 's', "EDGE_CURVE", 10);
    assert_true(e->counts == 1 << 4 && e->param[4].n_enums == 2 && e->param[1].kinds == SCHEMA_REF);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_token_of_the_sample_is_permitted),
        cmocka_unit_test(random_texts_are_valid_whatever_the_budget),
        cmocka_unit_test(what_is_wrong_is_refused),
        cmocka_unit_test(a_text_ends_within_its_budget_and_too_small_ones_are_refused),
        cmocka_unit_test(a_draft_can_be_taken_back),
        cmocka_unit_test(end_tokens_come_at_the_end_alone),
        cmocka_unit_test(a_table_says_what_was_seen_and_reads_back),
        cmocka_unit_test(a_damaged_table_is_refused_with_its_line),
        cmocka_unit_test(the_table_of_the_program_knows_the_usual_entities),
    };
    return cmocka_run_group_tests_name("grammar", tests, NULL, NULL);
}
