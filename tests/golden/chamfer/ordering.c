/* Whether the distances order variants of a part as people would:
 *
 *     ordering DIR [-v]
 *
 * Of each STEP file in DIR are made: copies moved at random, and moved and scaled by 0.01 to 100; the part with ever more
 * of a corner cut off; its bounding box; and its mesh with ever more noise.  Each goes through a STEP file and is scored
 * with --align best against the part.  A line for each violation with -v, then a table: how many held, and by how much the
 * closest of them (the larger of the two figures over the smaller); exit 1 if too many did not. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>

#include "lib/chamfer.h"
#include "lib/files.h"
#include "lib/isolate.h"
#include "lib/pool.h"
#include "shim/occt.h"
#include "shim/occt_build.h"

/* What must hold, and the share of cases that may not. */
enum { MOVED, SCALED, CUT, BOX, NOISE, SIZE, FLAGS, CHECKS };
static const struct {
    const char *name;
    double may_fail;
} checks[CHECKS] = {
    {"moved copies score as the same part", 0},
    {"scaled copies have the same shape, and their size", 0},
    {"a larger cut scores worse than a smaller, any cut worse than none", 0.01},
    {"the bounding box scores worse than the part, two-sided", 0},
    {"more noise scores worse", 0.01},
    {"a copy of another size scores worse the more it differs", 0},
    {"a moved copy is closed, valid, and of the same volume and box", 0},
};

struct tally {
    uint32_t n[CHECKS], failed[CHECKS];
    double closest[CHECKS]; /* of those that held */
    double floor; /* the worst moved copy's distance over what sampling alone gives */
    uint32_t boxes_fool; /* bounding boxes whose one-sided distance, the original's, is no more than twice the moved copies' */
    uint32_t skipped;
};

static const struct tally NO_TALLY = {.closest = {INFINITY, INFINITY, INFINITY, INFINITY, INFINITY, INFINITY, INFINITY}};
static bool verbose;

struct variant {
    struct chamfer_score score;
    struct part part;
    bool ok;
};

static const struct chamfer_opts opts = {.points = 2000};

/* The variant's file as chamfer reads it. */
static bool load_text(const char *name, const char *text, size_t n, struct part *out)
{
    struct part_request q = chamfer_request(&opts);
    return occ_load(name, text, n, &q, out) == ERR_OK && out->status == PART_OK;
}

static void score_shape(struct occ_build *b, int shape, const struct part *truth, struct variant *v)
{
    char *text = NULL;
    size_t n;
    memset(v, 0, sizeof *v);
    if (shape >= 0 && occ_step_text_native(b, shape, "variant", "variant", &text, &n) == ERR_OK && load_text("variant", text, n, &v->part)) {
        chamfer_score(truth, &v->part, &opts, &v->score);
        v->ok = v->score.ok;
    }
    free(text);
}

/* a is to be above b, and is what all that is checked turns on but for FLAGS. */
static void check(struct tally *t, int which, bool good, const char *name, const char *what, double a, double b)
{
    t->n[which]++;
    t->failed[which] += !good;
    if (good)
        t->closest[which] = fmin(t->closest[which], a / b);
    if (!good && verbose)
        fprintf(stderr, "%s: %s: %g, %g\n", name, what, a, b);
}

static double shape_sum(const struct variant *v)
{
    return v->score.best.shape_forward + v->score.best.shape_backward;
}

static int moved_at_random(struct occ_build *b, int shape, struct mt19937 *rng, double reach)
{
    struct occ_frame f = {.at = {mt_real(rng) * reach, mt_real(rng) * reach, mt_real(rng) * reach}, .x = {0, 0, 1}};
    for (int k = 0; k < 3; k++)
        f.axis[k] = mt_real(rng) - 0.5;
    f.x[0] = f.axis[1], f.x[1] = -f.axis[0], f.x[2] = 0.01; /* not along the axis */
    shape = occ_rotate(b, shape, f, 360 * mt_real(rng));
    return occ_move(b, shape, reach * (mt_real(rng) - 0.5), reach * (mt_real(rng) - 0.5), reach * (mt_real(rng) - 0.5));
}

/* Cuts, boxes, copies of a part that is already in the builder. */
static void try_shapes(const char *name, struct occ_build *b, int whole, const struct part *truth, struct mt19937 *rng, struct tally *t)
{
    static const double factors[] = {0.01, 0.1, 0.7, 3, 100};
    const double *box = truth->box;
    double side[3], reach = 0;
    struct variant v, w;
    for (int k = 0; k < 3; k++) {
        side[k] = box[k + 3] - box[k];
        reach = fmax(reach, side[k]);
    }
    double floor = 0, one_sided = 0;
    for (int i = 0; i < 2; i++) {
        score_shape(b, moved_at_random(b, whole, rng, 3 * reach), truth, &v);
        if (!v.ok) {
            t->skipped++;
            part_release(&v.part);
            occ_build_clear(b);
            return;
        }
        double noise = 2 * v.score.noise;
        floor = fmax(floor, v.score.scd_two_sided);
        t->floor = fmax(t->floor, v.score.scd_two_sided / noise);
        one_sided = fmax(one_sided, v.score.scd);
        check(t, MOVED, v.score.scd_two_sided < 2 * noise, name, "moved", 2 * noise, v.score.scd_two_sided);
        double r = v.part.volume / truth->volume;
        check(t, FLAGS, v.part.valid && v.part.n_closed_shells == v.part.n_shells && fabs(r - 1) < 1e-3 && v.score.box_ratio > 0.9 && v.score.box_ratio < 1.1 &&
              v.score.best.precision > 0.9 && v.score.best.recall > 0.9, name, v.part.valid ? "moved: volume, precision" : "moved: not valid", r,
              v.score.best.precision);
        part_release(&v.part);
    }
    for (size_t i = 0; i < ARRAY_LEN(factors); i++) {
        score_shape(b, moved_at_random(b, occ_scale(b, whole, factors[i]), rng, 3 * reach * factors[i]), truth, &v);
        if (v.ok) {
            double size = v.score.scale_pred / v.score.scale / factors[i], volume = v.part.volume / truth->volume / pow(factors[i], 3);
            check(t, SCALED, shape_sum(&v) < 4 * v.score.noise && fabs(size - 1) < 0.03 && fabs(volume - 1) < 0.01, name, "scaled",
                  4 * v.score.noise, shape_sum(&v));
        } else {
            t->skipped++;
        }
        part_release(&v.part);
    }
    double last = floor;
    for (int i = 0; i < 3; i++) { /* another size is another part */
        score_shape(b, moved_at_random(b, occ_scale(b, whole, 1.1 + 0.4 * i), rng, 3 * reach), truth, &v);
        check(t, SIZE, v.ok && v.score.scd_two_sided > last, name, "size", v.score.scd_two_sided, last);
        last = v.score.scd_two_sided;
        part_release(&v.part);
    }
    /* A corner as large as a quarter, a half, three quarters of each side. */
    last = 0;
    double last_volume = truth->volume;
    static const double share[] = {0.25, 0.5, 0.75};
    for (int i = 0; i < 3; i++) {
        double s = share[i];
        int corner = occ_box(b, box[0] + side[0] * s / 2, box[1] + side[1] * s / 2, box[2] + side[2] * s / 2, side[0] * s * 1.001,
                             side[1] * s * 1.001, side[2] * s * 1.001);
        int cut = occ_cut(b, whole, corner);
        struct occ_part_info info;
        if (occ_finish(b, &cut, &info) < 0) { /* in pieces, or nothing left */
            occ_build_clear(b);
            return;
        }
        score_shape(b, cut, truth, &w);
        if (w.ok && info.volume_mm3 < 0.97 * last_volume) {
            check(t, CUT, w.score.scd_two_sided > fmax(last, floor), name, "cut", w.score.scd_two_sided, fmax(last, floor));
            last = w.score.scd_two_sided;
            last_volume = info.volume_mm3;
        }
        part_release(&w.part);
    }
    if (truth->volume < 0.9 * side[0] * side[1] * side[2]) { /* else the part is its box, or nearly */
        score_shape(b, occ_box(b, box[0] + side[0] / 2, box[1] + side[1] / 2, box[2] + side[2] / 2, side[0], side[1], side[2]), truth, &w);
        check(t, BOX, w.ok && w.score.scd_two_sided > floor, name, "box", w.score.scd_two_sided, floor);
        t->boxes_fool += w.ok && w.score.scd <= 2 * one_sided;
        if (verbose && w.ok && w.score.scd_two_sided < 2 * floor)
            fprintf(stderr, "%s: box at %.3g of the moved copies, fills %.3g of it\n", name, w.score.scd_two_sided / floor,
                    truth->volume / (side[0] * side[1] * side[2]));
        part_release(&w.part);
    }
}

/* Corners of the triangles off by up to so much of the RMS radius, as a bad mesh has them. */
static void try_noise(const char *name, const struct part *truth, const char *path, struct mt19937 *rng, struct tally *t)
{
    static const double amount[] = {0.02, 0.06, 0.18};
    double last = 0;
    for (size_t i = 0; i < ARRAY_LEN(amount); i++) {
        struct part p;
        struct part_request q = chamfer_request(&opts);
        struct chamfer_score s;
        if (occ_load(path, NULL, 0, &q, &p) == ERR_OK && p.status == PART_OK) {
            double rms = cloud_rms(truth->mesh.points, truth->mesh.n_points);
            for (size_t k = 0; k < 3 * p.mesh.n_points; k++)
                p.mesh.points[k] += rms * amount[i] * 2 * (mt_real(rng) - 0.5);
            chamfer_score(truth, &p, &opts, &s);
            check(t, NOISE, s.ok && s.scd_two_sided > last, name, "noise", s.scd_two_sided, last);
            last = s.scd_two_sided;
        }
        part_release(&p);
    }
}

static int try_part(void *ctx, const char *path, size_t n, struct buf *out)
{
    (void)ctx;
    struct tally t = NO_TALLY;
    struct file_map m;
    struct part truth;
    struct mt19937 rng;
    char *name = xstrndup(path, n);
    mt_seed(&rng, (uint32_t)fnv1a(FNV_INIT, path_basename(name), strlen(path_basename(name))));
    int rc = file_map(name, 0, &m);
    if (rc == ERR_OK) {
        struct occ_build *b = occ_build_new();
        if (load_text(name, m.data, m.size, &truth)) {
            try_shapes(path_basename(name), b, occ_read(b, m.data, m.size), &truth, &rng, &t);
            try_noise(path_basename(name), &truth, name, &rng, &t);
        } else {
            t.skipped++;
        }
        part_release(&truth);
        occ_build_free(b);
        file_unmap(&m);
    }
    buf_add(out, &t, sizeof t);
    free(name);
    return rc;
}

struct sums {
    struct file_list files;
    struct tally all;
    uint32_t lost;
};

static int job(void *ctx, size_t i, struct buf *out)
{
    struct sums *s = ctx;
    buf_puts(out, s->files.v[i].path);
    return 0;
}

static int take(void *ctx, const struct isolate_result *r)
{
    struct sums *s = ctx;
    struct tally t;
    if (r->code < 0 || r->n != sizeof t) {
        fprintf(stderr, "%s: %s\n", s->files.v[r->index].path, r->error);
        s->lost++;
        return ERR_OK;
    }
    memcpy(&t, r->data, sizeof t);
    for (int k = 0; k < CHECKS; k++) {
        s->all.n[k] += t.n[k];
        s->all.failed[k] += t.failed[k];
        s->all.closest[k] = fmin(s->all.closest[k], t.closest[k]);
    }
    s->all.boxes_fool += t.boxes_fool;
    s->all.skipped += t.skipped;
    s->all.floor = fmax(s->all.floor, t.floor);
    return ERR_OK;
}

int main(int argc, char **argv)
{
    struct sums s = {.all = NO_TALLY};
    struct isolate *pool;
    bool bad = false;
    verbose = argc > 2;
    if (verbose)
        setenv("ISOLATE_STDERR", "1", 1);
    if (argc < 2 || file_list_add(&s.files, argv[1], STEP_SUFFIXES) < 0 || !s.files.n) {
        fprintf(stderr, "usage: ordering DIR [-v]\n");
        return 2;
    }
    int rc = isolate_open(&(struct isolate_opts){.seconds = 120, .work = try_part}, &pool);
    if (rc == ERR_OK)
        rc = isolate_run(pool, &(struct isolate_batch){.n = s.files.n, .job = job, .done = take, .ctx = &s});
    if (rc < 0) {
        fprintf(stderr, "ordering: %s\n", err_text());
        return 3;
    }
    isolate_close(pool);
    for (int k = 0; k < CHECKS; k++) {
        bool fails = s.all.failed[k] > checks[k].may_fail * s.all.n[k] || !s.all.n[k];
        bad |= fails;
        printf("%-66s %5u of %5u", checks[k].name, s.all.n[k] - s.all.failed[k], s.all.n[k]);
        if (k == FLAGS)
            printf("          %s\n", fails ? "  FAILED" : "");
        else
            printf("  x %6.2f%s\n", s.all.closest[k], fails ? "  FAILED" : "");
    }
    printf("one-sided, as the original measures: %u of %u bounding boxes at no more than twice the moved copies' distance\n",
           s.all.boxes_fool, s.all.n[BOX]);
    printf("%zu parts, %u lost, %u variants that OpenCASCADE could not make; the worst moved copy is at %.2f of what sampling alone gives\n",
           s.files.n, s.lost, s.all.skipped, s.all.floor);
    file_list_release(&s.files);
    return bad || s.lost > s.files.n / 100;
}
