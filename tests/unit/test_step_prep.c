/* step_round.c, step_restructure.c, step_restore.c: the strict tools. */
#include "tests/unit/testutil.h"

#include "lib/step_prep.h"

#define HEAD "ISO-10303-21;\nHEADER;\nFILE_NAME('1.23456789');\nENDSEC;\nDATA;\n"
#define TAIL "ENDSEC;\nEND-ISO-10303-21;\n"

static void assert_rounds(const char *value, const char *rounded, struct step_round_opts opts)
{
    char text[512], want[512];
    struct buf b = BUF_INIT;
    struct step_round_report r;
    snprintf(text, sizeof text, HEAD "#1=P('1.23456789',%s);\n" TAIL, value);
    snprintf(want, sizeof want, HEAD "#1=P('1.23456789',%s);\n" TAIL, rounded);
    if (step_round("t", text, strlen(text), &opts, &b, &r) < 0)
        fail_msg("%s", err_text());
    assert_string_equal(b.s, want);
    buf_release(&b);
}

static void reals_of_every_spelling_round(void **state)
{
    (void)state;
    const char *const cases[][2] = {
        {"1.23456789", "1.234568"}, {"-1.2345675", "-1.234568"}, {"1.2345665", "1.234566"}, {"1.23456650001", "1.234567"},
        {"9.9999999", "10."}, {"0.9999999", "1."}, {"99999.99999999", "100000."}, {"-0.", "0."}, {"0.E+000", "0."},
        {"+1.50", "1.5"}, {"5.E-05", "0.00005"}, {"1.E-07", "1.E-7"}, {"-2.46E-16", "-2.E-16"}, {"9.6E-9", "1.E-8"},
        {"0.00000012345", "1.E-7"}, {"1.5e3", "1500."}, {".5", "0.5"}, {"1E5", "100000."}, {"1.25E+20", "1.25E20"},
        {"12345678901234567890.", "1.234567890123456789E19"}, {"007.5", "7.5"}, {"3", "3"}, {"0.1E1", "1."},
        {"-12.0000004", "-12."}, {"1.2345995", "1.2346"}, {"-1.12399996", "-1.124"}, {"0.1234565000", "0.123456"}, {"0.12345650001", "0.123457"},
        {"19.9999996", "20."}, {"0.0123456789", "0.012346"}, {"0.00123456789", "0.001235"}, {"123456789012345.1234567", "123456789012345.123457"},
        {"1234567890123456.1234567", "1.234567890123456123457E15"}, {"01.12345678", "1.123457"}, {"-0.00000049", "-5.E-7"},
    };
    for (size_t i = 0; i < ARRAY_LEN(cases); i++)
        assert_rounds(cases[i][0], cases[i][1], STEP_ROUND_DEFAULT);
}

static void options_change_what_is_kept(void **state)
{
    (void)state;
    assert_rounds("0.00000012345", "1.23E-7", (struct step_round_opts){.decimals = 6, .significant = 3});
    assert_rounds("0.00000012345", "0.", (struct step_round_opts){.decimals = 6});
    assert_rounds("1.5E-13,0.25", "0.,0.2", (struct step_round_opts){.decimals = 1, .significant = 1, .flush = 1e-12});
    assert_rounds("0.5,1.5,-0.5", "0.,2.,0.", (struct step_round_opts){.decimals = 0});
}

static void unit_definitions_are_kept_and_coarse_units_seen(void **state)
{
    (void)state;
    const char *text = HEAD "#1=PLANE_ANGLE_MEASURE_WITH_UNIT(PLANE_ANGLE_MEASURE(0.0174532925199433),#2);\n"
                            "#2=(LENGTH_UNIT()NAMED_UNIT(*)SI_UNIT($,.METRE.));\n"
                            "#3=(GEOMETRIC_REPRESENTATION_CONTEXT(3)GLOBAL_UNIT_ASSIGNED_CONTEXT((#2)));\n"
                            "#4=P(0.0123456789);\n" TAIL;
    struct buf b = BUF_INIT;
    struct step_round_report r;
    assert_int_equal(step_round("t", text, strlen(text), &STEP_ROUND_DEFAULT, &b, &r), ERR_OK);
    assert_non_null(strstr(b.s, "0.0174532925199433"));
    assert_non_null(strstr(b.s, "#4=P(0.012345679);"));
    assert_int_equal(r.decimals, 9);
    assert_true(r.unit_mm == 1000);
    buf_release(&b);
}

static char *restructure(const char *data, bool parent_first, struct step_restructure_report *r)
{
    char *text = xasprintf(HEAD "%s" TAIL, data);
    struct buf b = BUF_INIT;
    struct step_restructure_opts opts = {.order = parent_first ? STEP_PARENT_FIRST : STEP_CHILDREN_FIRST};
    if (step_restructure("t", text, strlen(text), &opts, &b, r) < 0)
        fail_msg("%s", err_text());
    free(text);
    const char *part;
    size_t n;
    assert_true(step_data_part(b.s, b.n, &part, &n));
    char *out = xstrndup(part, n);
    buf_release(&b);
    return out;
}

static void children_come_first_and_roots_have_sections(void **state)
{
    (void)state;
    struct step_restructure_report r;
    char *s = restructure("#10=SHAPE_DEFINITION_REPRESENTATION(#20, #30);\n#20=A('#30',#40);\n#30=( X(#40) Y() );\n"
                          "#40=LEAF();\n#50=OTHER_ROOT(#40);\n#60=ALONE('x');\n#70=SHAPE_DEFINITION_REPRESENTATION(#40,#30);\n",
                          false, &r);
    assert_string_equal(s, "DATA;\n"
                           "/* SHAPE_DEFINITION_REPRESENTATION Section - 2 roots */\n"
                           "#1=LEAF();\n#2=A('#30',#1);\n#3=(X(#1)Y());\n#4=SHAPE_DEFINITION_REPRESENTATION(#2,#3);\n"
                           "#5=SHAPE_DEFINITION_REPRESENTATION(#1,#3);\n"
                           "/* OTHER_ROOT Section - 1 root */\n#6=OTHER_ROOT(#1);\n"
                           "/* Unattached Section - 1 root */\n#7=ALONE('x');\n"
                           "ENDSEC;\nEND-ISO-10303-21;");
    assert_int_equal(r.entities, 7);
    assert_int_equal(r.roots, 4);
    assert_int_equal(r.forward, 0);
    free(s);
}

static void parents_may_come_first(void **state)
{
    (void)state;
    struct step_restructure_report r;
    char *s = restructure("#3=LEAF();#2=A(#3);#1=R(#2,#3);", true, &r);
    assert_string_equal(s, "DATA;\n/* R Section - 1 root */\n#1=R(#2,#3);\n#2=A(#3);\n#3=LEAF();\nENDSEC;\nEND-ISO-10303-21;");
    assert_int_equal(r.forward, 3);
    free(s);
}

static void only_cycles_point_forward(void **state)
{
    (void)state;
    struct step_restructure_report r;
    char *s = restructure("#1=R(#2);#2=A(#3,#4);#3=B(#2);#4=L();#7=P(#8);#8=Q(#7);#9=S(#9);", false, &r);
    assert_string_equal(s, "DATA;\n/* R Section - 1 root */\n#1=B(#3);\n#2=L();\n#3=A(#1,#2);\n#4=R(#3);\n"
                           "/* S Section - 1 root */\n#5=S(#5);\n"
                           "/* Cyclic Section - 1 root */\n#6=Q(#7);\n#7=P(#6);\nENDSEC;\nEND-ISO-10303-21;");
    assert_int_equal(r.forward, 2);
    assert_int_equal(r.cyclic, 3); /* two and the self reference */
    free(s);
}

static void dangling_references_name_nothing_new(void **state)
{
    (void)state;
    struct step_restructure_report r;
    char *s = restructure("#5=R(#1,#9,#1);", false, &r);
    assert_string_equal(s, "DATA;\n/* R Section - 1 root */\n#1=R(#2,#3,#2);\nENDSEC;\nEND-ISO-10303-21;");
    assert_int_equal(r.dangling, 3);
    free(s);
}

static void data_sections_stay_apart(void **state)
{
    (void)state;
    struct step_restructure_report r;
    char *s = restructure("#1=R(#2);#2=A();ENDSEC;DATA('b',('S'));#3=R(#2);\n", false, &r);
    assert_string_equal(s, "DATA;\n/* R Section - 2 roots */\n#1=A();\n#2=R(#1);\nENDSEC;\n"
                           "DATA('b',('S'));\n/* R Section - 2 roots */\n#3=R(#1);\nENDSEC;\nEND-ISO-10303-21;");
    free(s);
}

static void many_data_sections_take_no_longer(void **state)
{
    (void)state;
    enum { MANY = 60000 }; /* each needs the one behind it: the last comes first */
    struct step_restructure_report r;
    struct buf b = BUF_INIT;
    for (int i = 1; i <= MANY; i++) {
        if (i > 1)
            buf_printf(&b, "ENDSEC;DATA('%d',('S'));", i);
        if (i < MANY)
            buf_printf(&b, "#%d=T%d(#%d);", i, i, i + 1);
        else
            buf_printf(&b, "#%d=T();", i);
    }
    char *s = restructure(b.s, false, &r);
    assert_int_equal(r.forward, 0);
    assert_non_null(strstr(s, "#1=T();"));
    assert_non_null(strstr(s, "DATA;\n/* T1 Section - 1 root */\n#60000=T1(#59999);"));
    free(s);
    buf_release(&b);
}

static void a_section_stands_behind_what_it_refers_to(void **state)
{
    (void)state;
    struct step_restructure_report r;
    char *s = restructure("#1=R(#3);#2=A();ENDSEC;DATA('b',('S'));#3=R(#2);ENDSEC;DATA('c',('S'));#4=L();\n", false, &r);
    assert_non_null(s); /* a and b name each other: the third, which needs neither, is first */
    assert_int_equal(r.forward, 1);
    free(s);
    s = restructure("#1=R(#3);ENDSEC;DATA('b',('S'));#3=L();\n", false, &r);
    assert_string_equal(s, "DATA('b',('S'));\n/* R Section - 1 root */\n#1=L();\nENDSEC;\n"
                           "DATA;\n/* R Section - 1 root */\n#2=R(#1);\nENDSEC;\nEND-ISO-10303-21;");
    assert_int_equal(r.forward, 0);
    free(s);
}

static void a_long_chain_needs_no_stack(void **state)
{
    (void)state;
    struct buf b = BUF_INIT;
    enum { N = 200000 };
    for (int i = 1; i < N; i++)
        buf_printf(&b, "#%d=A(#%d,#%d);", i, i + 1, i + 1);
    buf_printf(&b, "#%d=A();", N);
    struct step_restructure_report r;
    char *s = restructure(b.s, false, &r);
    assert_int_equal(r.entities, N);
    assert_int_equal(r.forward, 0);
    free(s);
    buf_release(&b);
}

/* Compact and back is the plain form to the byte. */
static void assert_compact_is_lossless(const char *data, enum step_order order, bool bare, bool relative)
{
    char *text = xasprintf(HEAD "%s" TAIL, data);
    struct step_restructure_report r;
    struct step_restructure_opts opts = {.order = order, .bare = bare};
    struct buf plain = BUF_INIT, compact = BUF_INIT, back = BUF_INIT;
    if (step_restructure("t", text, strlen(text), &opts, &plain, &r) < 0)
        fail_msg("%s", err_text());
    opts.compact = true;
    opts.relative = relative;
    assert_int_equal(step_restructure("t", text, strlen(text), &opts, &compact, &r), ERR_OK);
    assert_int_equal(step_is_compact(plain.s, plain.n), false);
    assert_int_equal(step_is_compact(compact.s, compact.n), r.entities > 0);
    step_expand(compact.s, compact.n, &back);
    assert_string_equal(back.s, plain.s);
    /* and without the header, as a model writes it */
    const char *part, *want;
    size_t n, want_n;
    assert_true(step_data_part(compact.s, compact.n, &part, &n));
    assert_true(step_data_part(plain.s, plain.n, &want, &want_n));
    buf_clear(&back);
    step_expand(part, n, &back);
    assert_int_equal(back.n, want_n);
    assert_memory_equal(back.s, want, want_n);
    buf_release(&plain);
    buf_release(&compact);
    buf_release(&back);
    free(text);
}

static void the_compact_form_is_undone_without_loss(void **state)
{
    (void)state;
    const char *const cases[] = {
        "", "#7=A();", "#3=LEAF();#2=A(#3,'#3;''/*');#1=R(#2,(#3,(#2)),$,*,.T.,\"0F\",1.5E-3);",
        "#1=R(#2);#2=A(#3,#4);#3=B(#2);#4=L();#7=P(#8);#8=Q(#7);#9=S(#9);", /* cycles */
        "#5=R(#1,#9,#1);", /* references to nothing */
        "#1=R(#2);#2=A();ENDSEC;DATA('b',('S'));#3=R(#2);#4=(X(#3)Y(#4));",
        "#1=CARTESIAN_POINT('+a',(1.,2.,3.));#2=CARTESIAN_POINT('-',(1.5,-2.,0.));#3=CARTESIAN_POINT('',(1.5,-2.0,0.));"
        "#4=CARTESIAN_POINT('-x''+',(999999999.,0.,1.E-5));#5=CARTESIAN_POINT('+',(-999999999.999999999,7.,-0.000000001));"
        "#6=CARTESIAN_POINT('',(999999999.,7.,-0.));#7=CARTESIAN_POINT('',(1.,2.));#8=CARTESIAN_POINT('',(4.,2.));#9=CARTESIAN_POINT('',());",
        "#1=ENDSEC(#2);#2=DATA('ENDSEC;');#3=DATA();", "#10=!USER(#20);#20=(A()B('\\X2\\00E9\\X0\\'));",
    };
    for (size_t i = 0; i < ARRAY_LEN(cases); i++)
        for (int order = 0; order < 3; order++)
            for (int how = 0; how < 4; how++)
                assert_compact_is_lossless(cases[i], (enum step_order)order, how & 1, how & 2);
}

/* An edge's end is told from its start, a seam from its centre; a turned edge goes on from its first vertex. */
static void points_are_told_from_the_point_met_before(void **state)
{
    (void)state;
    const char *text = HEAD "#1=CARTESIAN_POINT('',(40.,-12.5,6.));#2=AXIS2_PLACEMENT_3D('',#1,$,$);#3=CIRCLE('',#2,2.5);"
                            "#4=CARTESIAN_POINT('rim',(42.5,-12.5,6.));#5=VERTEX_POINT('',#4);#6=EDGE_CURVE('',#5,#5,#3,.T.);"
                            "#7=CARTESIAN_POINT('',(42.5,-12.5,0.));#8=VERTEX_POINT('',#7);#9=EDGE_CURVE('',#5,#8,$,.T.);"
                            "#10=ORIENTED_EDGE('',*,*,#9,.F.);#11=CARTESIAN_POINT('',(42.5,0.,6.));#12=VERTEX_POINT('',#11);"
                            "#13=CARTESIAN_POINT('',(40.,-12.5,5.));#14=AXIS2_PLACEMENT_3D('',#13,$,$);" TAIL;
    struct step_restructure_opts opts = {.order = STEP_ORIGINAL, .compact = true, .bare = true, .relative = true};
    struct step_restructure_report r;
    struct buf b = BUF_INIT;
    assert_int_equal(step_restructure("t", text, strlen(text), &opts, &b, &r), ERR_OK);
    assert_non_null(strstr(b.s, "CARTESIAN_POINT('',(40.,-12.5,6.));\n")); /* nothing to tell it from */
    assert_non_null(strstr(b.s, "CARTESIAN_POINT('+rim',(2.5,0.,0.));\n"));
    assert_non_null(strstr(b.s, "CARTESIAN_POINT('+',(0.,0.,-6.));\n"));
    assert_non_null(strstr(b.s, "ORIENTED_EDGE('',*,*,#1,.F.);\nCARTESIAN_POINT('+',(0.,12.5,0.));\n"));
    assert_non_null(strstr(b.s, "CARTESIAN_POINT('',(40.,-12.5,5.));\n")); /* an origin that lies off every axis of the last point */
    struct buf back = BUF_INIT;
    const char *damaged = "CARTESIAN_POINT('+',(1.,2.));L(#1);CARTESIAN_POINT('+',(1.,2.));CARTESIAN_POINT('+',(1.,";
    step_expand(damaged, strlen(damaged), &back);
    assert_string_equal(back.s, "#1=CARTESIAN_POINT('',(1.,2.));#2=L(#1);#3=CARTESIAN_POINT('',(2.,4.));#4=CARTESIAN_POINT('',(1.,");
    buf_release(&back);
    buf_release(&b);
}

static void compact_text_looks_as_the_docs_say(void **state)
{
    (void)state;
    const char *text = HEAD "#1=P('',(0.,0.,5.));#2=V('',#1);#3=D('',(0.,0.,1.));#4=E('',#2,#3,#5,#4);#5=L(#9);" TAIL;
    struct step_restructure_opts opts = {.order = STEP_ORIGINAL, .compact = true, .bare = true};
    struct step_restructure_report r;
    struct buf b = BUF_INIT;
    assert_int_equal(step_restructure("t", text, strlen(text), &opts, &b, &r), ERR_OK);
    assert_non_null(strstr(b.s, "DATA;\nP('',(0.,0.,5.));\nV('',#1);\nD('',(0.,0.,1.));\nE('',#2,#1,#-1,#0);\nL(#-1);\nENDSEC;\n"));
    assert_int_equal(r.forward, 1);
    assert_int_equal(r.roots, 1); /* #4, which none but itself refers to */
    buf_release(&b);
}

static void damaged_compact_text_is_expanded_as_far_as_it_goes(void **state)
{
    (void)state;
    const char *const cases[][2] = {
        {"DATA;\nA();\nB(#1,#7);\n", "DATA;\n#1=A();\n#2=B(#1,#9);\n"}, /* leads out of the file: 2 instances and 7 */
        {"A(#);B(#ID_3,#-);C('", "#1=A(#);#2=B(#ID_3,#-);#3=C('"},
        {"DATA;\n(A()B(#1));ENDSEC;\nEND-ISO-10303-21;\nX(#1);", "DATA;\n#1=(A()B(#2));ENDSEC;\nEND-ISO-10303-21;\nX(#1);"},
        {"DATA;/* A(#1); */A();/*", "DATA;/* A(#1); */#1=A();/*"},
    };
    for (size_t i = 0; i < ARRAY_LEN(cases); i++) {
        struct buf b = BUF_INIT;
        assert_true(step_is_compact(cases[i][0], strlen(cases[i][0])));
        step_expand(cases[i][0], strlen(cases[i][0]), &b);
        assert_string_equal(b.s, cases[i][1]);
        buf_release(&b);
    }
    assert_false(step_is_compact("DATA;\nENDSEC;\nEND-ISO-10303-21;\n", 33));
    assert_false(step_is_compact("nothing like it", 15));
}

static char *restore(const char *text, int want, struct step_restore_report *r)
{
    struct buf b = BUF_INIT;
    int rc = step_restore("t", text, strlen(text), &b, r);
    if (rc != want)
        fail_msg("%s", rc < 0 ? err_text() : "no error");
    if (rc == ERR_OK) { /* again: nothing left to do */
        struct buf twice = BUF_INIT;
        struct step_restore_report again;
        assert_int_equal(step_restore("t", b.s, b.n, &twice, &again), ERR_OK);
        assert_string_equal(twice.s, b.s);
        buf_release(&twice);
    }
    char *s = buf_detach(&b);
    const char *data = strstr(s, "DATA;\n");
    char *out = xstrdup(data ? data : s);
    free(s);
    return out;
}

#define M "MECHANICAL_DESIGN_GEOMETRIC_PRESENTATION_REPRESENTATION"

static void annotations_and_placeholders_are_undone(void **state)
{
    (void)state;
    struct step_restore_report r;
    char *s = restore(HEAD "/* " M " Section */\n#1=" M "('/* kept */',(#ID_1,\n #ID_2),#ID_3);\n/* BEGIN STYLED_ITEM 1 */\n/* ID_1 = 2 */\n"
                           "#2=S(/* inside */);/* ID_2 =3*/ #3=S();\n/*ID_3=4*/\n/* ID_1 = 3 */#4=(C()\n);\n" TAIL, ERR_OK, &r);
    assert_string_equal(s, "DATA;\n#1=" M "('/* kept */',(#3,#3),#4);\n#2=S();\n#3=S();\n#4=(C());\n" TAIL);
    assert_int_equal(r.resolved, 3);
    free(s);
}

static void placeholders_without_key_are_told_by_type_or_removed(void **state)
{
    (void)state;
    struct step_restore_report r;
    char *s = restore(HEAD "#1=" M "('',(#ID_1,#ID_2,#ID_3),#ID_4);\n#2=STYLED_ITEM('',(),#3);\n#3=F();\n#4=STYLED_ITEM('',(),#3);\n"
                           "#5=U(#4);\n#6=(GEOMETRIC_REPRESENTATION_CONTEXT(3)GLOBAL_UNIT_ASSIGNED_CONTEXT((#3)));\n"
                           "#7=X(#ID_9,(#ID_9,#3),(#ID_9));\n" TAIL, ERR_OK, &r);
    assert_non_null(strstr(s, "#1=" M "('',(#2),#6);"));
    assert_non_null(strstr(s, "#7=X($,(#3),());"));
    assert_int_equal(r.guessed, 2);
    assert_int_equal(r.dropped, 5);
    free(s);
}

static void missing_parameters_are_filled_in(void **state)
{
    (void)state;
    struct step_restore_report r;
    char *s = restore(HEAD "#1=COLOUR_RGB( , 0.5, 0.5, 0.5 );\n#2=A(1,,(,),);\n" TAIL, ERR_OK, &r);
    assert_string_equal(s, "DATA;\n#1=COLOUR_RGB('',0.5,0.5,0.5);\n#2=A(1,$,($,$),$);\n" TAIL);
    assert_int_equal(r.empty, 5);
    free(s);
}

static void generated_data_becomes_a_file(void **state)
{
    (void)state;
    struct step_restore_report r;
    char *s = restore("DATA;\n#1=A();\n#2=B(#1);\n#1=A( );\nENDSEC;\nEND-ISO-10303-21;\nand more", ERR_OK, &r);
    assert_string_equal(s, "DATA;\n#1=A();\n#2=B(#1);\n" TAIL);
    assert_true(r.header);
    assert_int_equal(r.duplicates, 1);
    free(s);
    free(restore("#1=A();\nENDSEC;\nEND-ISO-10303-21;\n", ERR_OK, &r));
}

static void what_cannot_be_mended_is_an_error_at_its_place(void **state)
{
    (void)state;
    struct step_restore_report r;
    free(restore("DATA;\n/* c */\n#1=A();\n#2=B(#1;\nENDSEC;\nEND-ISO-10303-21;\n", ERR_FORMAT, &r));
    assert_string_equal(err_text(), "t:4:1: ',' or ')' is due, not ';'");
    free(restore("DATA;\n#1=A();\n#2=B('x", ERR_FORMAT, &r));
    assert_string_equal(err_text(), "t:3:1: a string without its end");
    free(restore("", ERR_FORMAT, &r));
}

static void sections_of_edition_3_are_restored_as_they_are(void **state)
{
    (void)state;
    const char *rest = "ISO-10303-21;\nHEADER;\nENDSEC;\nANCHOR;\n<a>=#1;\n<it's>=1.5;\nENDSEC;\nREFERENCE;\n#9=<http://x/*y#z>;\nENDSEC;\nDATA;\n"
                       "#1=A('',#9);\nENDSEC;\nEND-ISO-10303-21;\n";
    for (int mark = 0; mark < 2; mark++) { /* and a byte-order mark changes nothing */
        char *text = xasprintf("%s%sSIGNATURE\nMIIB/*==\nENDSEC;\n", mark ? "\xef\xbb\xbf" : "", rest);
        struct buf b = BUF_INIT;
        struct step_restore_report r;
        assert_int_equal(step_restore("t", text, strlen(text), &b, &r), ERR_OK);
        assert_string_equal(b.s, rest);
        buf_release(&b);
        free(text);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(sections_of_edition_3_are_restored_as_they_are),
        cmocka_unit_test(reals_of_every_spelling_round),
        cmocka_unit_test(options_change_what_is_kept),
        cmocka_unit_test(unit_definitions_are_kept_and_coarse_units_seen),
        cmocka_unit_test(children_come_first_and_roots_have_sections),
        cmocka_unit_test(parents_may_come_first),
        cmocka_unit_test(only_cycles_point_forward),
        cmocka_unit_test(dangling_references_name_nothing_new),
        cmocka_unit_test(data_sections_stay_apart),
        cmocka_unit_test(many_data_sections_take_no_longer),
        cmocka_unit_test(a_section_stands_behind_what_it_refers_to),
        cmocka_unit_test(a_long_chain_needs_no_stack),
        cmocka_unit_test(the_compact_form_is_undone_without_loss),
        cmocka_unit_test(points_are_told_from_the_point_met_before),
        cmocka_unit_test(compact_text_looks_as_the_docs_say),
        cmocka_unit_test(damaged_compact_text_is_expanded_as_far_as_it_goes),
        cmocka_unit_test(annotations_and_placeholders_are_undone),
        cmocka_unit_test(placeholders_without_key_are_told_by_type_or_removed),
        cmocka_unit_test(missing_parameters_are_filled_in),
        cmocka_unit_test(generated_data_becomes_a_file),
        cmocka_unit_test(what_cannot_be_mended_is_an_error_at_its_place),
    };
    return cmocka_run_group_tests_name("step_prep", tests, NULL, NULL);
}
