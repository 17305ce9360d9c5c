/* The software rasteriser on a cube. */
#include "tests/unit/testutil.h"

#include <jansson.h>
#include <math.h>
#include <png.h>

#include "lib/render.h"

/* 0..1 cubed; points are not shared between faces, as in a triangulated solid. */
struct cube {
    double points[24][3], edges[24][3];
    uint32_t triangles[12][3], starts[13];
    struct render_mesh mesh;
};

static struct cube *make_cube(void)
{
    struct cube *c = calloc(1, sizeof *c);
    for (int f = 0; f < 6; f++) { /* axis f / 2, side f % 2 */
        int a = f / 2, u = (a + 1) % 3, v = (a + 2) % 3;
        for (int k = 0; k < 4; k++) {
            double *p = c->points[4 * f + k];
            p[a] = f % 2;
            p[u] = k == 1 || k == 2;
            p[v] = k >= 2;
        }
        uint32_t o = 4 * (uint32_t)f;
        const uint32_t out[6] = {0, 1, 2, 0, 2, 3}, in[6] = {0, 2, 1, 0, 3, 2};
        for (int k = 0; k < 6; k++)
            c->triangles[2 * f + k / 3][k % 3] = o + (f % 2 ? out : in)[k];
    }
    for (int e = 0; e < 12; e++) {
        int a = e / 4, u = (a + 1) % 3, v = (a + 2) % 3;
        for (int k = 0; k < 2; k++) {
            double *p = c->edges[2 * e + k];
            p[a] = k;
            p[u] = e & 1;
            p[v] = e >> 1 & 1;
        }
        c->starts[e + 1] = 2 * (uint32_t)(e + 1);
    }
    c->mesh = (struct render_mesh){&c->points[0][0], 24, &c->triangles[0][0], 12, &c->edges[0][0], c->starts, 12};
    return c;
}

static int is_white(const uint8_t *p)
{
    return p[0] == 255 && p[1] == 255 && p[2] == 255;
}

static void cube_fills_the_middle_of_a_white_picture(void **state)
{
    (void)state;
    struct cube *c = make_cube();
    uint8_t *rgb;
    assert_int_equal(render_rgb(&c->mesh, &render_views[1], 100, &rgb), ERR_OK);
    /* 86 of 100 pixels wide, flat inside, its outline dark */
    assert_true(is_white(rgb + 3 * (50 * 100 + 4)));
    const uint8_t *a = rgb + 3 * (50 * 100 + 50), *z = rgb + 3 * (20 * 100 + 70);
    assert_false(is_white(a));
    assert_true(abs(a[0] - z[0]) <= 2 && abs(a[2] - z[2]) <= 2);
    int dark = 255;
    for (int x = 4; x < 12; x++)
        if (rgb[3 * (50 * 100 + x)] < dark)
            dark = rgb[3 * (50 * 100 + x)];
    assert_true(dark < a[0] - 40);
    free(rgb);
    free(c);
}

static void hidden_edges_are_not_drawn(void **state)
{
    (void)state;
    struct cube *c = make_cube();
    uint8_t *with, *without;
    /* the three edges that meet in the corner away from the oblique view, (0, 1, 0) */
    assert_int_equal(render_rgb(&c->mesh, &render_views[0], 200, &with), ERR_OK);
    for (int e = 0; e < 12; e++)
        for (int k = 0; k < 2; k++) {
            double *p = c->edges[2 * e + k];
            if (p[0] == 0 && p[1] == 1 && p[2] == 0)
                memcpy(c->edges[2 * e], c->edges[2 * e + 1], sizeof c->edges[0]), memcpy(p, c->edges[2 * e + !k], sizeof c->edges[0]);
        }
    assert_int_equal(render_rgb(&c->mesh, &render_views[0], 200, &without), ERR_OK);
    int differing = 0;
    for (int i = 0; i < 200 * 200; i++)
        differing += abs(with[3 * i] - without[3 * i]) > 100;
    assert_true(differing < 20);
    free(with);
    free(without);
    free(c);
}

static void png_is_read_back_by_libpng(void **state)
{
    (void)state;
    struct cube *c = make_cube();
    struct buf png = BUF_INIT;
    for (int v = 0; v < RENDER_VIEWS; v++) {
        buf_clear(&png);
        assert_int_equal(render_png_mem(&c->mesh, &render_views[v], 64, &png), ERR_OK);
        png_image image = {.version = PNG_IMAGE_VERSION};
        assert_true(png_image_begin_read_from_memory(&image, png.s, png.n));
        assert_int_equal(image.width, 64);
        assert_int_equal(image.height, 64);
        image.format = PNG_FORMAT_RGB;
        uint8_t *rgb = malloc(PNG_IMAGE_SIZE(image));
        assert_true(png_image_finish_read(&image, NULL, rgb, 0, NULL));
        assert_false(is_white(rgb + 3 * (32 * 64 + 32)));
        assert_true(is_white(rgb));
        free(rgb);
    }
    buf_release(&png);
    free(c);
}

static uint32_t u32(const char *s)
{
    const uint8_t *p = (const uint8_t *)s;
    return p[0] | (uint32_t)p[1] << 8 | (uint32_t)p[2] << 16 | (uint32_t)p[3] << 24;
}

static void glb_is_whole(void **state)
{
    (void)state;
    struct cube *c = make_cube();
    struct buf glb = BUF_INIT;
    assert_int_equal(render_glb_mem(&c->mesh, 0.001, &glb), ERR_OK);
    assert_memory_equal(glb.s, "glTF", 4);
    assert_int_equal(u32(glb.s + 4), 2);
    assert_int_equal(u32(glb.s + 8), glb.n);
    uint32_t n = u32(glb.s + 12);
    assert_int_equal(n % 4, 0);
    assert_memory_equal(glb.s + 16, "JSON", 4);
    assert_memory_equal(glb.s + 24 + n, "BIN", 4);
    assert_int_equal(28 + n + u32(glb.s + 20 + n), glb.n);
    json_t *j = json_loadb(glb.s + 20, n, 0, NULL);
    assert_non_null(j);
    json_t *views = json_object_get(j, "bufferViews"), *accessors = json_object_get(j, "accessors");
    assert_int_equal(json_array_size(views), 5);
    assert_int_equal(json_array_size(accessors), 5);
    const json_int_t counts[5] = {24, 24, 36, 24, 24};
    for (size_t i = 0; i < 5; i++) {
        json_t *view = json_array_get(views, i);
        assert_int_equal(json_integer_value(json_object_get(json_array_get(accessors, i), "count")), counts[i]);
        assert_true(json_integer_value(json_object_get(view, "byteOffset")) + json_integer_value(json_object_get(view, "byteLength")) <=
                    (json_int_t)u32(glb.s + 20 + n));
    }
    json_t *max = json_object_get(json_array_get(accessors, 0), "max");
    assert_float_equal(json_number_value(json_array_get(max, 2)), 0.001, 1e-9);
    json_decref(j);
    buf_release(&glb);
    free(c);
}

static void damaged_meshes_are_refused(void **state)
{
    (void)state;
    struct cube *c = make_cube();
    struct buf out = BUF_INIT;
    assert_int_equal(render_png_mem(&c->mesh, &render_views[0], 5, &out), ERR_USAGE);
    c->triangles[3][1] = 24;
    assert_int_equal(render_png_mem(&c->mesh, &render_views[0], 50, &out), ERR_FORMAT);
    assert_non_null(strstr(err_text(), "triangle 3"));
    c->triangles[3][1] = 0;
    c->points[2][0] = NAN;
    assert_int_equal(render_glb_mem(&c->mesh, 1, &out), ERR_FORMAT);
    c->points[2][0] = INFINITY;
    assert_int_equal(render_png_mem(&c->mesh, &render_views[0], 50, &out), ERR_FORMAT);
    c->mesh.n_triangles = 0;
    assert_int_equal(render_png_mem(&c->mesh, &render_views[0], 50, &out), ERR_FORMAT);
    assert_int_equal(out.n, 0);
    free(c);
    /* all points in one place: nothing to see, and no fault */
    c = make_cube();
    memset(c->points, 0, sizeof c->points);
    assert_int_equal(render_png_mem(&c->mesh, &render_views[0], 50, &out), ERR_OK);
    buf_release(&out);
    free(c);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(cube_fills_the_middle_of_a_white_picture),
        cmocka_unit_test(hidden_edges_are_not_drawn),
        cmocka_unit_test(png_is_read_back_by_libpng),
        cmocka_unit_test(glb_is_whole),
        cmocka_unit_test(damaged_meshes_are_refused),
    };
    return cmocka_run_group_tests_name("render", tests, NULL, NULL);
}
