/* step.c: lexer, parser, strings, writer, the model's data part. */
#include "tests/unit/testutil.h"

#include "lib/step.h"

#define WRAP(data) "ISO-10303-21;\nHEADER;\nFILE_DESCRIPTION((''),'2;1');\nENDSEC;\nDATA;\n" data "\nENDSEC;\nEND-ISO-10303-21;\n"

static struct step_file *parse(const char *text, unsigned flags)
{
    struct step_file *f;
    if (step_parse("t", text, strlen(text), flags, &f) < 0)
        fail_msg("%s", err_text());
    return f;
}

static void assert_rejected(const char *text, const char *error)
{
    struct step_file *f = (void *)1;
    assert_int_equal(step_parse("t", text, strlen(text), 0, &f), ERR_FORMAT);
    assert_null(f);
    assert_string_equal(err_text(), error);
}

static void every_kind_of_value_is_read(void **state)
{
    (void)state;
    struct step_file *f = parse(WRAP("#10 = A(1,-2,+3,1.,-1.5E-07,1.E+3,.5,1E5,'s',\"0FF\",.T.,$,*,#11,(),((#11),#10),LEN(2.));\n"
                                     "#11=(B(1)C()\nD(#10));#12=!USER();"), 0);
    assert_int_equal(f->n, 3);
    assert_string_equal(step_type(f, f->v[0].type), "A");
    assert_int_equal(f->v[0].n_ref, 3);
    assert_int_equal(f->refs[0].target, 1);
    assert_int_equal(f->refs[2].target, 0);
    assert_true(f->v[1].complex);
    assert_string_equal(step_type(f, f->v[1].type), "B+C+D");
    assert_true(step_is(f, &f->v[1], "C"));
    assert_false(step_is(f, &f->v[1], "BC"));
    assert_string_equal(step_type(f, f->v[2].type), "!USER");
    assert_int_equal(step_find(f, 12), 2);
    assert_int_equal(step_find(f, 13), STEP_NONE);
    assert_int_equal(step_type_find(f, "A"), f->v[0].type);
    step_free(f);
}

/* What is read straight from the bytes and what goes token by token comes to the same: near the end of a text all goes the second
 * way, with blanks behind it the first. */
static void both_ways_to_read_an_instance_agree(void **state)
{
    (void)state;
    static const char *const parts[] = {
        "#1=A(1.5,-0.25,.5,1.E5,3,-7);", "#12345678=A(#123456789,#000000012345678);", "#7 = LONG_KEYWORD_OF_MANY_LETTERS_9 (1.5 , #2 );",
        "#1=A(1.5);#2=A (2.);#3=AB(3.);#4=A\n(4.);", "#1=(A()B(1.25));#2=A+B(1.);", "#1=(A(2.)\n B('x')C((),(#1)) ) ;", "#1=( A() /* */ B() );",
        "#1=a();", "#1=1A();", "#1=!U(1.);#2=!U(2.);", "#123456789012345678=A();", "#1234567890123456789=A();", "#1=A(#1234567890123456789);",
        "#1=A(--1.);", "#1=A(1.2.3);", "#1=A(1.5x);", "#1=A('a''b','',''',.U.,.T.,$,*);", "#1=A(B(1.5),C(2));", "#1=A(1.5e-3,+2.5,007.5);",
        "#1=A(1.5,);", "#1=A(,1.5);", "#1=A((1.5)(2.5));", "#1=A(1.5)", "#1=A(1.5));", "#1=()", "#1=(A);", "#1=(A()a());", "#1=A(#1#2);", "#1=A(#);",
        "#1=A(12345678,123456789.,1.123456789012345678,0.);", "# 1=A();", "#1=A_(1.);#2=_A(1.);#3=A_;", "#1=A(1 .5);", "#1=A(\"0F\",1.5);",
    };
    for (size_t i = 0; i < ARRAY_LEN(parts); i++) {
        char *text = xasprintf("DATA;%s\nENDSEC;END-ISO-10303-21;", parts[i]), *longer = xasprintf("%s%300s", text, "");
        struct step_file *a, *b;
        int rc = step_parse("t", text, strlen(text), STEP_NO_HEADER | STEP_REALS, &a);
        char *error = xstrdup(err_text());
        assert_int_equal(step_parse("t", longer, strlen(longer), STEP_NO_HEADER | STEP_REALS, &b), rc);
        if (rc < 0) {
            assert_string_equal(err_text(), error);
        } else {
            assert_int_equal(a->n, b->n);
            assert_int_equal(a->n_refs, b->n_refs);
            assert_int_equal(a->n_reals, b->n_reals);
            for (size_t k = 0; k < a->n; k++) {
                const struct step_entity *x = &a->v[k], *y = &b->v[k];
                assert_string_equal(step_type(a, x->type), step_type(b, y->type));
                assert_true(x->id == y->id && x->off == y->off && x->len == y->len && x->par == y->par && x->par_len == y->par_len);
                assert_true(x->ref == y->ref && x->n_ref == y->n_ref && x->complex == y->complex);
            }
            for (size_t k = 0; k < a->n_refs; k++)
                assert_true(a->refs[k].off == b->refs[k].off && a->refs[k].target == b->refs[k].target);
            for (size_t k = 0; k < a->n_reals; k++)
                assert_memory_equal(&a->reals[k], &b->reals[k], sizeof *a->reals);
        }
        step_free(a);
        step_free(b);
        free(error);
        free(text);
        free(longer);
    }
}

static void kinds_of_tokens_are_told_apart(void **state)
{
    (void)state;
    const char *text = "-1 1. 1E5 .5 .U. 'a''b' \"1F\" #3 KEY ( ) , = ; $ * /* c */";
    const enum step_kind want[] = {STEP_INT, STEP_REAL, STEP_REAL, STEP_REAL, STEP_ENUM, STEP_STRING, STEP_BINARY, STEP_REF,
                                   STEP_KEYWORD, STEP_OPEN, STEP_CLOSE, STEP_COMMA, STEP_EQUALS, STEP_SEMI, STEP_OMITTED,
                                   STEP_DERIVED, STEP_END};
    const char *p = text, *end = text + strlen(text);
    struct step_token t;
    for (size_t i = 0; i < ARRAY_LEN(want); i++)
        assert_int_equal(step_lex(&p, end, &t), want[i]);
}

static void comments_strings_and_white_space_hide_nothing(void **state)
{
    (void)state;
    struct step_file *f = parse(WRAP("/* #9=X(); */#1/*;*/=/* ( */A\r\n(/*)*/'#2;/*''*/)',\t#2);\\N\\#2=B();"), 0);
    assert_int_equal(f->n, 2);
    assert_int_equal(f->v[0].n_ref, 1);
    struct buf b = BUF_INIT;
    step_put(f, &f->v[0], NULL, &b);
    assert_string_equal(b.s, "#1=A('#2;/*''*/)',#2);");
    buf_release(&b);
    step_free(f);
}

static void page_directive_may_carry_an_apostrophe(void **state)
{
    (void)state;
    const char *const strings[] = {"'\\S\\''", "'\\S\\'s'", "'\\S\\'''", "'\\\\S\\\\'", "'a\\\\S\\'", "''", "''''"};
    for (size_t i = 0; i < ARRAY_LEN(strings); i++) {
        char text[64];
        snprintf(text, sizeof text, "%s,1)", strings[i]);
        const char *end = step_string_end(text, text + strlen(text));
        assert_non_null(end);
        assert_int_equal(end - text, strlen(strings[i]));
    }
}

static void errors_name_line_and_column(void **state)
{
    (void)state;
    assert_rejected("", "t:1:1: holds no text");
    assert_rejected("\xff\xfe", "t:1:1: not a STEP file: ISO-10303-21; is due");
    assert_rejected(WRAP("#1=A(1 2);"), "t:6:8: ',' or ')' is due, not '2'");
    assert_rejected(WRAP("#1=A(1,);"), "t:6:8: a value is due, not ')'");
    assert_rejected(WRAP("#1=A(,1);"), "t:6:6: a value is due, not ','");
    assert_rejected(WRAP("#1=A((1);"), "t:6:9: ',' or ')' is due, not ';'");
    assert_rejected(WRAP("#1=A(1));"), "t:6:8: ';' is due, not ')'");
    assert_rejected(WRAP("#1=A(1)"), "t:7:1: ';' is due, not 'ENDSEC'");
    assert_rejected(WRAP("#1=(A()B);"), "t:6:9: '(' is due, not ')'");
    assert_rejected(WRAP("#1=();"), "t:6:5: a keyword is due, not ')'");
    assert_rejected(WRAP("#1=a();"), "t:6:4: a keyword with a small letter");
    assert_rejected(WRAP("#1=A();\r\n\r\n  #1=B();"), "t:8:3: #1 is defined a second time");
    assert_rejected(WRAP("#1=A(#ID_3);"), "t:6:6: '#' without a number");
    assert_rejected(WRAP("#1=A(.T);"), "t:6:6: a malformed enumeration value");
    assert_rejected(WRAP("#1=A(NAN);"), "t:6:9: '(' behind the keyword of a typed parameter is due, not ')'");
    assert_rejected(WRAP("#1=A(1.E);"), "t:6:6: an exponent without digits");
    assert_rejected(WRAP("#1=A(\"4\");"), "t:6:6: a malformed binary");
    assert_rejected(WRAP("#1=A(\"\nF\");"), "t:6:6: a malformed binary"); /* white space does not count: it is left out later */
    assert_rejected(WRAP("#1=A(\" \");"), "t:6:6: a malformed binary");
    assert_rejected("ISO-10303-21;\nHEADER;\nENDSEC;\nDATA;\n#1=A('x", "t:5:6: a string without its end");
    assert_rejected("ISO-10303-21;\nHEADER;\nENDSEC;\nDATA;\n/* x", "t:5:1: a comment without its end");
    assert_rejected("ISO-10303-21;\nHEADER;\nENDSEC;\nDATA;\nENDSEC;\n", "t:6:1: the text ends where DATA or END-ISO-10303-21; is due");
    assert_rejected(WRAP("") "x", "t:9:1: text after END-ISO-10303-21;");
}

static void a_text_may_end_anywhere(void **state)
{
    (void)state;
    const char *text = WRAP("/* c */ #12 = A('x''y',1.5E-07,\"0F\",.T.,(#2,LEN($)));#2=(B()C(*));");
    for (size_t n = 0; n <= strlen(text); n++) {
        char *exact = malloc(n + !n); /* so that a sanitizer sees a read behind it */
        memcpy(exact, text, n);
        struct step_file *f;
        int rc = step_parse("t", exact, n, 0, &f);
        assert_int_equal(rc, n < strlen(text) - 1 ? ERR_FORMAT : ERR_OK);
        step_free(f);
        free(exact);
    }
}

static void nesting_is_limited(void **state)
{
    (void)state;
    char deep[1024], text[2048];
    memset(deep, '(', 300);
    deep[300] = 0;
    snprintf(text, sizeof text, WRAP("#1=A(%s);"), deep);
    struct step_file *f;
    assert_int_equal(step_parse("t", text, strlen(text), 0, &f), ERR_FORMAT);
    assert_string_equal(err_text(), "t:6:205: parentheses nest deeper than 200");
}

static void sections_and_header_are_found(void **state)
{
    (void)state;
    struct step_file *f = parse("ISO-10303-21;HEADER;FILE_SCHEMA(('X'));ENDSEC;ANCHOR;<a>=#1;ENDSEC;REFERENCE;#5=<u#v>;ENDSEC;"
                                "DATA('one',('X'));#1=A(#2);ENDSEC;DATA('two',('X'));#2=A(#3);#3=B();ENDSEC;"
                                "END-ISO-10303-21;SIGNATURE x;", 0);
    assert_int_equal(f->n_sections, 2);
    assert_int_equal(f->n_skipped, 3);
    assert_int_equal(f->sections[1].first, 1);
    assert_int_equal(f->sections[1].n, 2);
    assert_int_equal(f->v[2].section, 1);
    assert_memory_equal(f->text + f->sections[1].par, "'two',('X')", f->sections[1].par_len);
    assert_non_null(step_header(f, "FILE_SCHEMA"));
    assert_null(step_header(f, "FILE_NAME"));
    step_free(f);
    /* Edition 3: a URI may hold an apostrophe or what looks like a comment. */
    f = parse("ISO-10303-21;HEADER;ENDSEC;ANCHOR;<a'b>=#1;ENDSEC;REFERENCE;#5=<http://x/*y>;ENDSEC;DATA;#1=A();ENDSEC;END-ISO-10303-21;", 0);
    assert_int_equal(f->n, 1);
    step_free(f);
    assert_rejected("ISO-10303-21;HEADER;ENDSEC;ANCHOR;<a", "t:1:28: a section that ends in ENDSEC; is due, not 'ANCHOR'");
}

static void sparse_and_dangling_ids_are_resolved(void **state)
{
    (void)state;
    struct step_file *f = parse(WRAP("#900000000000000001=A(#7,#8);#7=B();"), 0);
    assert_int_equal(f->refs[0].target, 1);
    assert_int_equal(f->refs[1].target, STEP_NONE);
    assert_int_equal(f->n_dangling, 1);
    assert_int_equal(step_find(f, 900000000000000001u), 0);
    step_free(f);
}

static void parts_and_parameters_are_spans(void **state)
{
    (void)state;
    struct step_file *f = parse(WRAP("#1=( A ( 1 ) B('x)',(2, 3) , $ ) );"), 0);
    struct step_token k, params, v;
    const char *p = NULL;
    assert_true(step_part(f, &f->v[0], &p, &k, &params));
    assert_memory_equal(k.s, "A", k.n);
    assert_true(step_part(f, &f->v[0], &p, &k, &params));
    assert_memory_equal(k.s, "B", k.n);
    assert_true(step_param(params.s, params.n, 0, &v));
    assert_memory_equal(v.s, "'x)'", 4);
    assert_true(step_param(params.s, params.n, 1, &v));
    assert_int_equal(v.n, 6);
    assert_memory_equal(v.s, "(2, 3)", 6);
    assert_true(step_param(params.s, params.n, 2, &v));
    assert_int_equal(v.n, 1);
    assert_false(step_param(params.s, params.n, 3, &v));
    assert_false(step_part(f, &f->v[0], &p, &k, &params));
    step_free(f);
}

static void strings_decode_and_encode(void **state)
{
    (void)state;
    const struct {
        const char *token, *value;
    } cases[] = {
        {"'it''s'", "it's"},
        {"'a\\\\b'", "a\\b"},
        {"'\\X\\E9'", "\xc3\xa9"},
        {"'\\S\\i'", "\xc3\xa9"},
        {"'\\X2\\03B103B2\\X0\\!'", "\xce\xb1\xce\xb2!"},
        {"'\\X4\\0001F600\\X0\\'", "\xf0\x9f\x98\x80"},
        {"'\\X2\\D83DDE00\\X0\\'", "\xf0\x9f\x98\x80"},
        {"'two\n lines'", "two lines"},
    };
    struct buf b = BUF_INIT, again = BUF_INIT;
    for (size_t i = 0; i < ARRAY_LEN(cases); i++) {
        buf_clear(&b);
        assert_true(step_string_decode(cases[i].token, strlen(cases[i].token), &b));
        assert_string_equal(b.s, cases[i].value);
        buf_clear(&again);
        step_string_encode(cases[i].value, strlen(cases[i].value), &again);
        buf_clear(&b);
        assert_true(step_string_decode(again.s, again.n, &b));
        assert_string_equal(b.s, cases[i].value);
    }
    buf_clear(&b);
    assert_false(step_string_decode("'\\X2\\03'", 8, &b));
    assert_false(step_string_decode("'\\X2\\0041'", 10, &b)); /* not closed */
    assert_false(step_string_decode("'\\X2\\00411\\X0\\'", 15, &b));
    assert_true(step_string_decode("'\\X2\\\\X0\\'", 10, &b));
    /* A million directives that are not closed: in one pass. */
    enum { MANY = 1000000 };
    char *many = malloc(5 * MANY + 2);
    for (size_t i = 0; i < MANY; i++)
        memcpy(many + 1 + 5 * i, "\\X2\\z", 5);
    many[0] = many[5 * MANY + 1] = '\'';
    buf_clear(&b);
    assert_false(step_string_decode(many, 5 * MANY + 2, &b));
    assert_int_equal(b.n, 5 * MANY);
    free(many);
    buf_release(&b);
    buf_release(&again);
}

static void spaces_inside_a_reference_are_an_error(void **state)
{
    (void)state;
    assert_rejected(WRAP("#1=A(# 1);"), "t:6:6: '#' without a number");
}

static void renumbering_leaves_strings_alone(void **state)
{
    (void)state;
    struct step_file *f = parse(WRAP("#5 = A ( '#7  x' , #7, ( #7 , #5 , #99 ) );#7=B ( ) ;"), 0);
    const uint64_t of[] = {1, 12345678};
    struct step_ids ids = {.f = f, .of = of};
    struct buf b = BUF_INIT;
    step_put(f, &f->v[0], &ids, &b);
    assert_string_equal(b.s, "#1=A('#7  x',#12345678,(#12345678,#1,#99));");
    buf_release(&b);
    step_free(f);
}

static void the_index_covers_the_text(void **state)
{
    (void)state;
    const char *text = WRAP(" #1=A(#2); /* c */ #2=(B()C(#1)) ;");
    struct step_file *f = parse(text, 0);
    struct buf b = BUF_INIT; /* gaps and instances as they stand give the text back */
    size_t at = 0;
    for (size_t i = 0; i < f->n; i++) {
        buf_add(&b, text + at, f->v[i].off - at);
        buf_add(&b, text + f->v[i].off, f->v[i].len);
        at = f->v[i].off + f->v[i].len;
    }
    buf_puts(&b, text + at);
    assert_string_equal(b.s, text);
    buf_release(&b);
    step_free(f);
}

static void data_part_is_cut_out(void **state)
{
    (void)state;
    const char *text = "ISO-10303-21;HEADER;F('DATA;');/*DATA;*/ENDSEC;DATA;#1=A('END-ISO-10303-21;');ENDSEC;END-ISO-10303-21; junk";
    const char *part;
    size_t n;
    assert_true(step_data_part(text, strlen(text), &part, &n));
    assert_int_equal(n, strlen("DATA;#1=A('END-ISO-10303-21;');ENDSEC;END-ISO-10303-21;"));
    assert_memory_equal(part, "DATA;#1=A('END-ISO-10303-21;');ENDSEC;END-ISO-10303-21;", n);
    assert_false(step_data_part("no such", 7, &part, &n));
}

static void a_header_is_put_before_generated_text(void **state)
{
    (void)state;
    const char *const texts[] = {
        "DATA;\n#1=A();\nENDSEC;\nEND-ISO-10303-21;\n and so on",
        "#1=A();\nENDSEC;\nEND-ISO-10303-21;",
        "\n/* x */\n#1=A();\nENDSEC;\nEND-ISO-10303-21;",
        "ISO-10303-21;\nHEADER;\nENDSEC;\nDATA;\n#1=A();\nENDSEC;\nEND-ISO-10303-21;",
    };
    for (size_t i = 0; i < ARRAY_LEN(texts); i++) {
        struct buf b = BUF_INIT;
        step_with_header(texts[i], strlen(texts[i]), &b);
        struct step_file *f = parse(b.s, 0);
        assert_int_equal(f->n, 1);
        assert_int_equal(f->n_header, 3);
        step_free(f);
        buf_release(&b);
    }
    struct buf b = BUF_INIT; /* cut short: stays so */
    step_with_header("DATA;\n#1=A(", 11, &b);
    struct step_file *f;
    assert_int_equal(step_parse("t", b.s, b.n, 0, &f), ERR_FORMAT);
    buf_release(&b);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_kind_of_value_is_read),
        cmocka_unit_test(both_ways_to_read_an_instance_agree),
        cmocka_unit_test(kinds_of_tokens_are_told_apart),
        cmocka_unit_test(comments_strings_and_white_space_hide_nothing),
        cmocka_unit_test(page_directive_may_carry_an_apostrophe),
        cmocka_unit_test(errors_name_line_and_column),
        cmocka_unit_test(a_text_may_end_anywhere),
        cmocka_unit_test(nesting_is_limited),
        cmocka_unit_test(sections_and_header_are_found),
        cmocka_unit_test(sparse_and_dangling_ids_are_resolved),
        cmocka_unit_test(parts_and_parameters_are_spans),
        cmocka_unit_test(strings_decode_and_encode),
        cmocka_unit_test(spaces_inside_a_reference_are_an_error),
        cmocka_unit_test(renumbering_leaves_strings_alone),
        cmocka_unit_test(the_index_covers_the_text),
        cmocka_unit_test(data_part_is_cut_out),
        cmocka_unit_test(a_header_is_put_before_generated_text),
    };
    return cmocka_run_group_tests_name("step", tests, NULL, NULL);
}
