/* Parts made by shim/occt_build.h: right volumes, lean text, and the same solid read back. */
#include "tests/unit/testutil.h"

#include <math.h>
#include <stdio.h>

#include "lib/part.h"
#include "shim/occt.h"
#include "shim/occt_build.h"

static struct occ_build *b;

static int open_builder(void **state)
{
    (void)state;
    b = occ_build_new();
    return b ? 0 : -1;
}

static int close_builder(void **state)
{
    (void)state;
    occ_build_free(b);
    return 0;
}

/* Finishes the shape, checks its volume, and that the written text gives the same solid. */
static char *written(int shape, double volume, int faces)
{
    struct occ_part_info info;
    char *text;
    size_t n;
    if (occ_finish(b, &shape, &info) < 0)
        fail_msg("%s", err_text());
    assert_float_equal(info.volume_mm3 / volume, 1, 1e-6);
    assert_int_equal(info.faces, faces);
    if (occ_step_text(b, shape, "part", "part", 6, &text, &n) < 0)
        fail_msg("%s", err_text());
    assert_int_equal(strlen(text), n);

    struct part_request q = {.flags = PART_PROPERTIES | PART_CHECK};
    struct part p;
    assert_int_equal(occ_load("part", text, n, &q, &p), ERR_OK);
    assert_int_equal(p.status, PART_OK);
    assert_true(p.valid);
    assert_int_equal(p.n_solids, 1);
    assert_int_equal(p.n_closed_shells, 1);
    assert_int_equal(p.n_faces, faces);
    assert_float_equal(p.volume / volume, 1, 1e-6);
    part_release(&p);
    return text;
}

static void check(int shape, double volume, int faces)
{
    free(written(shape, volume, faces));
}

static void primitives_have_their_volumes(void **state)
{
    (void)state;
    check(occ_box(b, 1, 2, 3, 10, 20, 30), 6000, 6);
    check(occ_cylinder(b, OCC_X(0, 5, 0), 3, 10), M_PI * 90, 3);
    check(occ_cone(b, OCC_Z(0, 0, 1), 6, 0, 9), M_PI * 36 * 3, 2);
    check(occ_cone(b, OCC_Z(0, 0, 1), 2, 6, 9), M_PI * 3 * (4 + 12 + 36), 3);
    check(occ_sphere(b, 1, 1, 1, 5), M_PI * 4 / 3 * 125, 1);
    check(occ_torus(b, OCC_Z(0, 0, 0), 10, 2), 2 * M_PI * M_PI * 40, 1);
}

static void profiles_with_holes_and_arcs_are_extruded(void **state)
{
    (void)state;
    const double q = M_SQRT2 - 1;
    /* a stadium, half circles at its ends, with a round hole and a square one of either direction */
    struct occ_point stadium[] = {{-10, -5, 0}, {10, -5, 1}, {10, 5, 0}, {-10, 5, 1}};
    struct occ_point square[] = {{-8, -1, 0}, {-8, 1, 0}, {-6, 1, 0}, {-6, -1, 0}};
    struct occ_loop loops[] = {{.p = stadium, .n = 4}, {.cx = 8, .r = 2}, {.p = square, .n = 4}};
    check(occ_extrude(b, OCC_Y(0, 3, 0), loops, 3, 4), 4 * (200 + M_PI * 25 - M_PI * 4 - 4), 11);
    struct occ_point dome[] = {{0, 0, 0}, {5, 0, q}, {0, 5, 0}};
    check(occ_revolve(b, dome, 3, 360), M_PI * 2 / 3 * 125, 2);
    /* a groove, concave seen from the axis: Pappus */
    struct occ_point groove[] = {{4, 0, 0}, {10, 0, 0}, {10, 3, -1}, {10, 7, 0}, {10, 10, 0}, {4, 10, 0}};
    double cut = M_PI * 2 * 2 / 2 * 2 * M_PI * (10 - 4 * 2 / (3 * M_PI));
    check(occ_revolve(b, groove, 6, 360), M_PI * 84 * 10 - cut, 6);
    struct occ_point slice[] = {{2, 0, 0}, {4, 0, 0}, {4, 3, 0}, {2, 3, 0}};
    check(occ_revolve(b, slice, 4, 90), M_PI * 12 * 3 / 4, 6);
}

static void lofts_have_plane_sides(void **state)
{
    (void)state;
    struct occ_point base[] = {{-3, -3, 0}, {3, -3, 0}, {3, 3, 0}, {-3, 3, 0}}, top[] = {{-1, -1, 0}, {1, -1, 0}, {1, 1, 0}, {-1, 1, 0}};
    struct occ_point apex[4] = {{0, 0, 0}};
    check(occ_loft(b, base, 0, top, 6, 4), 2.0 * (36 + 12 + 4), 6);
    check(occ_loft(b, base, 1, apex, 10, 4), 36 * 3, 5);
}

static void patterns_are_cut_and_fused(void **state)
{
    (void)state;
    int disc = occ_cylinder(b, OCC_Z(0, 0, 0), 20, 5);
    int holes = occ_polar(b, occ_cylinder(b, OCC_Z(15, 0, 0), 2, 5), OCC_Z(0, 0, 0), 6);
    check(occ_cut(b, disc, holes), M_PI * 5 * (400 - 6 * 4), 9);
    int studs = occ_grid(b, occ_box(b, 0, 0, 6, 2, 2, 2), 3, 5, 2, 4);
    check(occ_fuse(b, disc, studs), M_PI * 2000 + 6 * 8, 3 + 6 * 5);
    /* faces that continue each other become one */
    check(occ_fuse(b, occ_box(b, 0, 0, 0, 2, 2, 2), occ_move(b, occ_box(b, 0, 0, 0, 2, 2, 2), 2, 0, 0)), 16, 6);
    check(occ_common(b, occ_box(b, 0, 0, 0, 4, 4, 4), occ_rotate(b, occ_box(b, 2, 2, 0, 4, 4, 4), OCC_Z(0, 0, 0), 90)), 2 * 2 * 4, 6);
}

static void chosen_edges_are_rounded_and_bevelled(void **state)
{
    (void)state;
    int box = occ_box(b, 0, 0, 0, 10, 10, 10);
    check(occ_fillet(b, box, OCC_EDGES_VERTICAL, 2), 1000 - 10 * (4 - M_PI) * 4, 10);
    check(occ_chamfer(b, box, OCC_EDGES_TOP, 1), 1000 - (4 * 10 * 0.5 - 4 / 3.0), 10);
    check(occ_fillet(b, box, OCC_EDGES_ALL, 2), 216 + 6 * 36 * 2 + 12 * 6 * M_PI + M_PI * 4 / 3 * 8, 26);
}

static size_t count(const char *text, const char *word)
{
    size_t n = 0;
    for (const char *s = text; (s = strstr(s, word)); s++)
        n++;
    return n;
}

static void text_is_lean_and_always_the_same(void **state)
{
    (void)state;
    char *one = written(occ_box(b, 0, 0, 5, 20, 10, 10), 2000, 6);
    char *two = written(occ_box(b, 0, 0, 5, 20, 10, 10), 2000, 6);
    assert_string_equal(one, two);
    assert_null(strstr(one, "PCURVE"));
    assert_null(strstr(one, "-0.,"));
    assert_int_equal(count(one, "=CARTESIAN_POINT("), 9); /* eight corners and the origin */
    assert_int_equal(count(one, "=DIRECTION("), 6);
    assert_int_equal(count(one, "=EDGE_CURVE("), 12);
    assert_true(count(one, "\n#") < 130);
    /* children ahead of parents */
    for (const char *s = strstr(one, "\n#"); s; s = strstr(s + 1, "\n#")) {
        long id = strtol(s + 2, NULL, 10);
        const char *end = strchr(s + 1, '\n');
        for (const char *r = strchr(s + 2, '#'); r && r < end; r = strchr(r + 1, '#'))
            assert_true(strtol(r + 1, NULL, 10) < id);
    }
    free(one);
    free(two);
}

static void failures_stick_and_say_why(void **state)
{
    (void)state;
    struct occ_part_info info;
    char *text = NULL;
    size_t n;
    int shape = occ_cylinder(b, OCC_Z(0, 0, 0), -1, 5);
    assert_int_equal(shape, -1);
    assert_int_equal(occ_cut(b, occ_box(b, 0, 0, 0, 1, 1, 1), shape), -1);
    assert_int_equal(occ_finish(b, &shape, &info), ERR_EXTERN);
    assert_non_null(strstr(err_text(), "cylinder: "));
    assert_int_equal(occ_step_text(b, 0, "x", "x", 6, &text, &n), ERR_EXTERN);
    assert_null(text);

    occ_build_clear(b);
    shape = occ_grid(b, occ_box(b, 0, 0, 0, 1, 1, 1), 2, 5, 1, 0);
    assert_int_equal(occ_finish(b, &shape, &info), ERR_EXTERN);
    assert_non_null(strstr(err_text(), "more than one solid"));

    occ_build_clear(b);
    struct occ_point bow_tie[] = {{0, 0, 0}, {2, 2, 0}, {2, 0, 0}, {0, 2, 0}};
    shape = occ_extrude(b, OCC_Z(0, 0, 0), &(struct occ_loop){.p = bow_tie, .n = 4}, 1, 1);
    assert_int_equal(occ_finish(b, &shape, &info), ERR_EXTERN);

    occ_build_clear(b);
    shape = occ_fillet(b, occ_box(b, 0, 0, 0, 1, 1, 1), OCC_EDGES_ALL, 3);
    assert_int_equal(occ_finish(b, &shape, &info), ERR_EXTERN);

    occ_build_clear(b);
    shape = 99;
    assert_int_equal(occ_finish(b, &shape, &info), ERR_EXTERN);
    assert_non_null(strstr(err_text(), "no such shape"));
    occ_build_free(NULL);
}

#define WITH_BUILDER(f) cmocka_unit_test_setup_teardown(f, open_builder, close_builder)

int main(void)
{
    const struct CMUnitTest tests[] = {
        WITH_BUILDER(primitives_have_their_volumes),
        WITH_BUILDER(profiles_with_holes_and_arcs_are_extruded),
        WITH_BUILDER(lofts_have_plane_sides),
        WITH_BUILDER(patterns_are_cut_and_fused),
        WITH_BUILDER(chosen_edges_are_rounded_and_bevelled),
        WITH_BUILDER(text_is_lean_and_always_the_same),
        WITH_BUILDER(failures_stick_and_say_why),
    };
    return cmocka_run_group_tests_name("occt_build", tests, NULL, NULL);
}
