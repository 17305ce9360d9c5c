#include "lib/render.h"

#include <math.h>
#include <png.h>
#include <stdbool.h>
#include <stdlib.h>

#include "lib/err.h"
#include "lib/json.h"

const struct render_view render_views[RENDER_VIEWS] = {
    {"oblique", {0.9, -1.2, 0.85}, {0, 0, 1}}, {"front", {0, -1, 0}, {0, 0, 1}},
    {"back", {0, 1, 0}, {0, 0, 1}},            {"left", {-1, 0, 0}, {0, 0, 1}},
    {"right", {1, 0, 0}, {0, 0, 1}},           {"top", {0, 0, 1}, {0, 1, 0}},
    {"bottom", {0, 0, -1}, {0, 1, 0}},         {"oblique-back", {-1.2, 0.9, 0.85}, {0, 0, 1}},
    {"oblique-below", {-0.9, -1.2, -0.85}, {0, 0, 1}},
};

typedef struct {
    double x, y, z;
} vec;

static vec at(const double *p)
{
    return (vec){p[0], p[1], p[2]};
}
static vec minus(vec a, vec b)
{
    return (vec){a.x - b.x, a.y - b.y, a.z - b.z};
}
static vec cross(vec a, vec b)
{
    return (vec){a.y * b.z - a.z * b.y, a.z * b.x - a.x * b.z, a.x * b.y - a.y * b.x};
}
static double dot(vec a, vec b)
{
    return a.x * b.x + a.y * b.y + a.z * b.z;
}
static vec normalised(vec a)
{
    double n = sqrt(dot(a, a));
    return n > 0 ? (vec){a.x / n, a.y / n, a.z / n} : (vec){0, 0, 1};
}

static int check_mesh(const struct render_mesh *m)
{
    if (m->n_triangles == 0 || m->n_points == 0)
        return err_set(ERR_FORMAT, "nothing to draw: no triangles");
    for (size_t i = 0; i < 3 * m->n_points; i++)
        if (!(fabs(m->points[i]) < 1e100))
            return err_set(ERR_FORMAT, "point %zu of the mesh is not finite", i / 3);
    for (size_t i = 0; i < 3 * m->n_triangles; i++)
        if (m->triangles[i] >= m->n_points)
            return err_set(ERR_FORMAT, "triangle %zu of the mesh has point %u of %zu", i / 3, m->triangles[i], m->n_points);
    for (size_t i = 0; i < m->n_edges; i++)
        if (m->edge_starts[i] > m->edge_starts[i + 1])
            return err_set(ERR_FORMAT, "edge %zu of the mesh ends before it starts", i);
    if (m->n_edges)
        for (size_t i = 0; i < 3 * (size_t)m->edge_starts[m->n_edges]; i++)
            if (!(fabs(m->edge_points[i]) < 1e100))
                return err_set(ERR_FORMAT, "edge point %zu of the mesh is not finite", i / 3);
    return ERR_OK;
}

/* Of each point: the mean direction of its triangles, weighted by their area. */
static vec *point_normals(const struct render_mesh *m)
{
    vec *normal = calloc(m->n_points, sizeof *normal);
    if (!normal)
        return NULL;
    for (size_t i = 0; i < m->n_triangles; i++) {
        const uint32_t *t = m->triangles + 3 * i;
        vec a = at(m->points + 3 * t[0]);
        vec n = cross(minus(at(m->points + 3 * t[1]), a), minus(at(m->points + 3 * t[2]), a));
        for (int k = 0; k < 3; k++) {
            vec *v = &normal[t[k]];
            *v = (vec){v->x + n.x, v->y + n.y, v->z + n.z};
        }
    }
    for (size_t i = 0; i < m->n_points; i++)
        normal[i] = normalised(normal[i]);
    return normal;
}

/* The picture in the making, several times finer than what is returned. */
struct canvas {
    int size;
    float *depth;     /* towards the viewer, in pixels; -INFINITY: nothing there */
    uint8_t *rgb;
    vec right, up, from;
    double scale, mid_x, mid_y;
};

static vec to_screen(const struct canvas *c, vec p)
{
    return (vec){(dot(p, c->right) - c->mid_x) * c->scale + c->size / 2.0,
                 c->size / 2.0 - (dot(p, c->up) - c->mid_y) * c->scale, dot(p, c->from) * c->scale};
}

static uint8_t to_byte(double v)
{
    return (uint8_t)(v <= 0 ? 0 : v >= 1 ? 255 : v * 255 + 0.5);
}

/* Diffuse light from the viewer's upper left and, weaker, from the right and the viewer; more from above than
 * from below; a soft highlight.  n: in the viewer's axes (right, up, towards). */
static void shade(vec n, double above, uint8_t rgb[3])
{
    static const vec key = {-0.40, 0.56, 0.725}, fill = {0.74, 0.10, 0.665}, half = {-0.216, 0.302, 0.929};
    if (n.z < 0)
        n = (vec){-n.x, -n.y, -n.z}; /* the back of an open or inverted face */
    double light = 0.34 + 0.06 * above + 0.38 * fmax(0, dot(n, key)) + 0.14 * fmax(0, dot(n, fill)) + 0.22 * n.z;
    double h = fmax(0, dot(n, half)), h4 = h * h * h * h, shine = 0.16 * (h4 * h4) * (h4 * h4) * (h4 * h4) * h4;
    rgb[0] = to_byte(0.66 * light + shine);
    rgb[1] = to_byte(0.76 * light + shine);
    rgb[2] = to_byte(0.88 * light + shine);
}

/* Narrows the columns x0..x1 to those where f, which grows by `slope` a column from f0 at x0, may be positive; with one to spare. */
static void narrow(double f0, double slope, int x0, double *lo, double *hi)
{
    if (slope > 0)
        *lo = fmax(*lo, floor(x0 - f0 / slope) - 1);
    else if (slope < 0)
        *hi = fmin(*hi, ceil(x0 - f0 / slope) + 1);
}

static void draw_triangle(struct canvas *c, const vec p[3], const vec n[3])
{
    double area = (p[1].x - p[0].x) * (p[2].y - p[0].y) - (p[2].x - p[0].x) * (p[1].y - p[0].y);
    if (fabs(area) < 1e-12)
        return;
    int x0 = (int)fmax(0, floor(fmin(p[0].x, fmin(p[1].x, p[2].x)))), x1 = (int)fmin(c->size - 1, ceil(fmax(p[0].x, fmax(p[1].x, p[2].x))));
    int y0 = (int)fmax(0, floor(fmin(p[0].y, fmin(p[1].y, p[2].y)))), y1 = (int)fmin(c->size - 1, ceil(fmax(p[0].y, fmax(p[1].y, p[2].y))));
    /* Weights of the corners 1 and 2, linear in x and y. */
    double bx = (p[2].y - p[0].y) / area, by = -(p[2].x - p[0].x) / area, dx = -(p[1].y - p[0].y) / area, dy = (p[1].x - p[0].x) / area;
    bool flat = !memcmp(&n[0], &n[1], sizeof *n) && !memcmp(&n[0], &n[2], sizeof *n);
    uint8_t plain[3];
    if (flat) { /* one colour */
        vec w = normalised(n[0]);
        shade((vec){dot(w, c->right), dot(w, c->up), dot(w, c->from)}, w.z, plain);
    }
    for (int y = y0; y <= y1; y++) {
        double b0 = (x0 + 0.5 - p[0].x) * bx + (y + 0.5 - p[0].y) * by, d0 = (x0 + 0.5 - p[0].x) * dx + (y + 0.5 - p[0].y) * dy, lo = x0, hi = x1;
        narrow(b0, bx, x0, &lo, &hi);
        narrow(d0, dx, x0, &lo, &hi);
        narrow(1 - b0 - d0, -bx - dx, x0, &lo, &hi);
        if (!(lo <= hi)) /* and far outside, perhaps */
            continue;
        for (int x = (int)lo; x <= (int)hi; x++) {
            double b = b0 + (x - x0) * bx, d = d0 + (x - x0) * dx, a = 1 - b - d;
            if (a < -1e-9 || b < -1e-9 || d < -1e-9)
                continue;
            size_t i = (size_t)y * (size_t)c->size + (size_t)x;
            float z = (float)(a * p[0].z + b * p[1].z + d * p[2].z);
            if (z <= c->depth[i])
                continue;
            c->depth[i] = z;
            if (flat) {
                memcpy(c->rgb + 3 * i, plain, 3);
                continue;
            }
            vec w = normalised((vec){a * n[0].x + b * n[1].x + d * n[2].x, a * n[0].y + b * n[1].y + d * n[2].y,
                                     a * n[0].z + b * n[1].z + d * n[2].z});
            shade((vec){dot(w, c->right), dot(w, c->up), dot(w, c->from)}, w.z, c->rgb + 3 * i);
        }
    }
}

static const uint8_t INK[3] = {38, 44, 54};

/* A round dot where nothing lies more than `bias` in front of z. */
static void draw_dot(struct canvas *c, vec p, double radius, double bias)
{
    for (int y = (int)ceil(p.y - radius - 0.5); y <= p.y + radius - 0.5; y++)
        for (int x = (int)ceil(p.x - radius - 0.5); x <= p.x + radius - 0.5; x++) {
            if (x < 0 || y < 0 || x >= c->size || y >= c->size)
                continue;
            double dx = x + 0.5 - p.x, dy = y + 0.5 - p.y;
            size_t i = (size_t)y * (size_t)c->size + (size_t)x;
            if (dx * dx + dy * dy <= radius * radius && c->depth[i] <= p.z + bias)
                memcpy(c->rgb + 3 * i, INK, 3);
        }
}

static void draw_edges(struct canvas *c, const struct render_mesh *m, double radius, double bias)
{
    for (size_t e = 0; e < m->n_edges; e++)
        for (size_t i = m->edge_starts[e]; i + 1 < m->edge_starts[e + 1]; i++) {
            vec a = to_screen(c, at(m->edge_points + 3 * i)), b = to_screen(c, at(m->edge_points + 3 * (i + 1)));
            double length = hypot(b.x - a.x, b.y - a.y);
            if (!(length < 4.0 * c->size)) /* an edge far outside the triangles is damage */
                continue;
            int steps = (int)(length / fmax(0.5, radius * 0.5)) + 1;
            for (int k = 0; k <= steps; k++) {
                double t = (double)k / steps;
                draw_dot(c, (vec){a.x + t * (b.x - a.x), a.y + t * (b.y - a.y), a.z + t * (b.z - a.z)}, radius, bias);
            }
        }
}

/* Outlines where the surface turns away from the viewer and no edge lies: jumps of the depth. */
static int draw_outlines(struct canvas *c, double radius, double jump)
{
    size_t n = (size_t)c->size * (size_t)c->size;
    uint8_t *mark = calloc(n, 1);
    if (!mark)
        return err_set(ERR_NOMEM, "out of memory");
    int w = c->size;
    for (int y = 1; y + 1 < w; y++)
        for (int x = 1; x + 1 < w; x++) {
            size_t i = (size_t)y * (size_t)w + (size_t)x;
            double z = c->depth[i];
            const size_t beside[4] = {i - 1, i + 1, i - (size_t)w, i + (size_t)w};
            for (int k = 0; k < 4 && z > -INFINITY; k++) {
                /* A face seen at a grazing angle is as steep on the other side, and no outline. */
                double other = c->depth[beside[k ^ 1]], slope = other > -INFINITY ? fabs(other - z) : 0;
                if (z - c->depth[beside[k]] > jump + 2 * slope)
                    mark[i] = 1;
            }
        }
    for (int y = 0; y < w; y++)
        for (int x = 0; x < w; x++) {
            size_t i = (size_t)y * (size_t)w + (size_t)x;
            if (mark[i])
                draw_dot(c, (vec){x + 0.5, y + 0.5, c->depth[i]}, radius, jump);
        }
    free(mark);
    return ERR_OK;
}

/* How much finer than the result to draw. */
static int fineness(int size)
{
    return size <= 320 ? 4 : size <= 800 ? 3 : size <= 2400 ? 2 : 1;
}

int render_rgb(const struct render_mesh *m, const struct render_view *view, int size, uint8_t **rgb)
{
    if (size < RENDER_MIN_SIZE || size > RENDER_MAX_SIZE)
        return err_set(ERR_USAGE, "a picture of %d pixels: %d to %d are possible", size, RENDER_MIN_SIZE, RENDER_MAX_SIZE);
    int rc = check_mesh(m), fine = fineness(size);
    if (rc < 0)
        return rc;
    struct canvas c = {.size = size * fine};
    size_t n = (size_t)c.size * (size_t)c.size;
    vec *normal = point_normals(m);
    c.depth = malloc(n * sizeof *c.depth);
    c.rgb = malloc(n * 3);
    uint8_t *result = malloc((size_t)size * (size_t)size * 3);
    if (!normal || !c.depth || !c.rgb || !result) {
        rc = err_set(ERR_NOMEM, "out of memory for a picture of %d x %d pixels", c.size, c.size);
        goto end;
    }
    memset(c.rgb, 255, n * 3);
    for (size_t i = 0; i < n; i++)
        c.depth[i] = -INFINITY;

    c.from = normalised(at(view->from));
    c.right = normalised(cross(at(view->up), c.from));
    c.up = cross(c.from, c.right);
    double lo[3] = {INFINITY, INFINITY, INFINITY}, hi[3] = {-INFINITY, -INFINITY, -INFINITY};
    for (size_t i = 0; i < 3 * m->n_triangles; i++) {
        vec p = at(m->points + 3 * m->triangles[i]);
        double q[3] = {dot(p, c.right), dot(p, c.up), dot(p, c.from)};
        for (int k = 0; k < 3; k++) {
            lo[k] = fmin(lo[k], q[k]);
            hi[k] = fmax(hi[k], q[k]);
        }
    }
    double extent = fmax(hi[0] - lo[0], hi[1] - lo[1]);
    c.scale = extent > 0 ? 0.86 * c.size / extent : 1;
    c.mid_x = (lo[0] + hi[0]) / 2;
    c.mid_y = (lo[1] + hi[1]) / 2;
    double deep = fmax(hi[2] - lo[2], extent) * c.scale;

    for (size_t i = 0; i < m->n_triangles; i++) {
        const uint32_t *t = m->triangles + 3 * i;
        vec p[3], w[3];
        for (int k = 0; k < 3; k++) {
            p[k] = to_screen(&c, at(m->points + 3 * t[k]));
            w[k] = normal[t[k]];
        }
        draw_triangle(&c, p, w);
    }
    double radius = fine * (size < 400 ? 0.55 : 0.55 + size / 2000.0 * 0.6);
    rc = draw_outlines(&c, radius * 0.8, 0.012 * deep);
    if (rc < 0)
        goto end;
    draw_edges(&c, m, radius, 0.003 * deep + fine);

    for (int y = 0; y < size; y++)
        for (int x = 0; x < size; x++)
            for (int k = 0; k < 3; k++) {
                unsigned sum = 0;
                for (int v = 0; v < fine; v++)
                    for (int u = 0; u < fine; u++)
                        sum += c.rgb[3 * ((size_t)(y * fine + v) * (size_t)c.size + (size_t)(x * fine + u)) + (size_t)k];
                result[3 * ((size_t)y * (size_t)size + (size_t)x) + (size_t)k] = (uint8_t)((sum + (unsigned)(fine * fine) / 2) / (unsigned)(fine * fine));
            }
    *rgb = result;
    result = NULL;
end:
    free(result);
    free(c.rgb);
    free(c.depth);
    free(normal);
    return rc;
}

int render_encode_png(const uint8_t *rgb, int width, int height, struct buf *out)
{
    png_image image = {.version = PNG_IMAGE_VERSION, .width = (png_uint_32)width, .height = (png_uint_32)height, .format = PNG_FORMAT_RGB};
    png_alloc_size_t n = PNG_IMAGE_PNG_SIZE_MAX(image);
    buf_grow(out, n);
    if (!png_image_write_to_memory(&image, out->s + out->n, &n, 0, rgb, 0, NULL))
        return err_set(ERR_EXTERN, "PNG: %s", image.message);
    out->n += n;
    out->s[out->n] = 0;
    return ERR_OK;
}

int render_png_mem(const struct render_mesh *m, const struct render_view *view, int size, struct buf *out)
{
    uint8_t *rgb;
    int rc = render_rgb(m, view, size, &rgb);
    if (rc < 0)
        return rc;
    rc = render_encode_png(rgb, size, size, out);
    free(rgb);
    return rc;
}

/* ---- GLB (glTF 2.0, 3.6.2 meshes and 4.4 the binary container) ---- */
enum { GL_FLOAT = 5126, GL_UINT = 5125, GL_ARRAY = 34962, GL_INDICES = 34963, GL_LINES = 1, GL_TRIANGLES = 4 };

static void put_u32(struct buf *b, uint32_t v)
{
    uint8_t le[4] = {(uint8_t)v, (uint8_t)(v >> 8), (uint8_t)(v >> 16), (uint8_t)(v >> 24)};
    buf_add(b, le, 4);
}

static void put_f32(struct buf *b, double v)
{
    float f = (float)v;
    uint32_t u;
    memcpy(&u, &f, 4);
    put_u32(b, u);
}

static void put_view(struct jw *j, size_t from, size_t n, int target)
{
    jw_object(j);
    jw_kv_int(j, "buffer", 0);
    jw_kv_int(j, "byteOffset", (int64_t)from);
    jw_kv_int(j, "byteLength", (int64_t)n);
    jw_kv_int(j, "target", target);
    jw_end(j);
}

/* lo and hi: the bounds glTF wants of positions, as the floats written; NULL for others. */
static void put_accessor(struct jw *j, int view, int type, size_t n, const char *shape, const float *lo, const float *hi)
{
    jw_object(j);
    jw_kv_int(j, "bufferView", view);
    jw_kv_int(j, "componentType", type);
    jw_kv_int(j, "count", (int64_t)n);
    jw_kv_str(j, "type", shape);
    for (int k = 0; lo && k < 2; k++) {
        jw_key(j, k ? "max" : "min");
        jw_array(j);
        for (int i = 0; i < 3; i++)
            jw_real(j, (double)(k ? hi : lo)[i]);
        jw_end(j);
    }
    jw_end(j);
}

static void put_positions(struct buf *bin, const double *p, size_t n, double unit, float lo[3], float hi[3])
{
    for (int k = 0; k < 3; k++) {
        lo[k] = INFINITY;
        hi[k] = -INFINITY;
    }
    for (size_t i = 0; i < 3 * n; i++) {
        float v = (float)(p[i] * unit);
        lo[i % 3] = fminf(lo[i % 3], v);
        hi[i % 3] = fmaxf(hi[i % 3], v);
        put_f32(bin, v);
    }
}

static void put_primitive(struct jw *j, int position, int normal, int indices, int mode, int material)
{
    jw_object(j);
    jw_key(j, "attributes");
    jw_object(j);
    jw_kv_int(j, "POSITION", position);
    if (normal >= 0)
        jw_kv_int(j, "NORMAL", normal);
    jw_end(j);
    jw_kv_int(j, "indices", indices);
    jw_kv_int(j, "mode", mode);
    jw_kv_int(j, "material", material);
    jw_end(j);
}

static void put_material(struct jw *j, double r, double g, double b)
{
    jw_object(j);
    jw_key(j, "pbrMetallicRoughness");
    jw_object(j);
    jw_key(j, "baseColorFactor");
    jw_array(j);
    jw_real(j, r), jw_real(j, g), jw_real(j, b), jw_real(j, 1);
    jw_end(j);
    jw_kv_real(j, "metallicFactor", 0.1);
    jw_kv_real(j, "roughnessFactor", 0.6);
    jw_end(j);
    jw_kv_bool(j, "doubleSided", true);
    jw_end(j);
}

int render_glb_mem(const struct render_mesh *m, double unit, struct buf *out)
{
    int rc = check_mesh(m);
    if (rc < 0)
        return rc;
    vec *normal = point_normals(m);
    if (!normal)
        return err_set(ERR_NOMEM, "out of memory");
    struct buf bin = BUF_INIT, json = BUF_INIT;
    float lo[2][3], hi[2][3];
    size_t from[6] = {0}, n_edge_points = m->n_edges ? m->edge_starts[m->n_edges] : 0, n_lines = 0;
    put_positions(&bin, m->points, m->n_points, unit, lo[0], hi[0]);
    from[1] = bin.n;
    for (size_t i = 0; i < m->n_points; i++)
        put_f32(&bin, normal[i].x), put_f32(&bin, normal[i].y), put_f32(&bin, normal[i].z);
    from[2] = bin.n;
    for (size_t i = 0; i < 3 * m->n_triangles; i++)
        put_u32(&bin, m->triangles[i]);
    from[3] = bin.n;
    put_positions(&bin, m->edge_points, n_edge_points, unit, lo[1], hi[1]);
    from[4] = bin.n;
    for (size_t e = 0; e < m->n_edges; e++)
        for (uint32_t i = m->edge_starts[e]; i + 1 < m->edge_starts[e + 1]; i++, n_lines++)
            put_u32(&bin, i), put_u32(&bin, i + 1);
    from[5] = bin.n;
    free(normal);

    struct jw j = JW_INIT(&json);
    jw_object(&j);
    jw_key(&j, "asset");
    jw_object(&j);
    jw_kv_str(&j, "version", "2.0");
    jw_end(&j);
    jw_key(&j, "scenes");
    jw_raw(&j, "[{\"nodes\":[0]}]");
    jw_kv_int(&j, "scene", 0);
    jw_key(&j, "nodes"); /* a quarter turn about x: the part's z becomes glTF's y */
    jw_raw(&j, "[{\"mesh\":0,\"rotation\":[-0.70710678,0,0,0.70710678]}]");
    jw_key(&j, "materials");
    jw_array(&j);
    put_material(&j, 0.55, 0.66, 0.80);
    put_material(&j, 0.10, 0.12, 0.15);
    jw_end(&j);
    jw_key(&j, "meshes");
    jw_array(&j);
    jw_object(&j);
    jw_key(&j, "primitives");
    jw_array(&j);
    put_primitive(&j, 0, 1, 2, GL_TRIANGLES, 0);
    if (n_lines)
        put_primitive(&j, 3, -1, 4, GL_LINES, 1);
    jw_end(&j);
    jw_end(&j);
    jw_end(&j);
    jw_key(&j, "accessors");
    jw_array(&j);
    put_accessor(&j, 0, GL_FLOAT, m->n_points, "VEC3", lo[0], hi[0]);
    put_accessor(&j, 1, GL_FLOAT, m->n_points, "VEC3", NULL, NULL);
    put_accessor(&j, 2, GL_UINT, 3 * m->n_triangles, "SCALAR", NULL, NULL);
    if (n_lines) {
        put_accessor(&j, 3, GL_FLOAT, n_edge_points, "VEC3", lo[1], hi[1]);
        put_accessor(&j, 4, GL_UINT, 2 * n_lines, "SCALAR", NULL, NULL);
    }
    jw_end(&j);
    jw_key(&j, "bufferViews");
    jw_array(&j);
    for (int i = 0; i < (n_lines ? 5 : 3); i++)
        put_view(&j, from[i], from[i + 1] - from[i], i == 2 || i == 4 ? GL_INDICES : GL_ARRAY);
    jw_end(&j);
    jw_key(&j, "buffers");
    jw_array(&j);
    jw_object(&j);
    jw_kv_int(&j, "byteLength", (int64_t)bin.n);
    jw_end(&j);
    jw_end(&j);
    jw_end(&j);
    while (json.n % 4)
        buf_putc(&json, ' ');

    if (bin.n > UINT32_MAX - json.n - 28) {
        rc = err_set(ERR_FORMAT, "a mesh of %zu bytes is too big for GLB", bin.n);
    } else {
        buf_puts(out, "glTF");
        put_u32(out, 2);
        put_u32(out, (uint32_t)(12 + 8 + json.n + 8 + bin.n));
        put_u32(out, (uint32_t)json.n);
        buf_puts(out, "JSON");
        buf_add(out, json.s, json.n);
        put_u32(out, (uint32_t)bin.n);
        buf_add(out, "BIN", 4);
        buf_add(out, bin.s, bin.n);
    }
    buf_release(&json);
    buf_release(&bin);
    return rc;
}
