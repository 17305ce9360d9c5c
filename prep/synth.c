/* synth: parametric parts with captions that are true of them.
 *
 * Part i is made from random numbers that depend on (seed, i, attempt) alone, so any part can be
 * made again by itself, on any number of processes.  A family builds a solid and says what it is;
 * a solid that OpenCASCADE finds wanting is made anew from the next attempt's numbers.
 */
#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>

#include "lib/isolate.h"
#include "lib/part.h"
#include "lib/random.h"
#include "lib/tool.h"
#include "shim/occt.h"
#include "shim/occt_build.h"

enum {
    MAX_ATTEMPTS = 100, /* of one part before it counts as failed */
    DECIMALS = 6,       /* of coordinates, as step-round keeps */
};

/* ---- what a family works with ---- */
struct gen {
    struct occ_build *b;
    uint64_t rng;
    bool even; /* sizes of few values */
    /* the profile in the making */
    struct occ_point p[256];
    struct occ_loop loop[32];
    int n_points, n_loops;
    /* what is said */
    struct buf plain;       /* "A flat plate with two holes": no full stop */
    struct buf sizes, with; /* "80 mm long, 5 mm thick"; "6 mm holes" */
    int n_sizes;
    double extent[8];       /* the sizes that are extents of the whole: checked against its box */
    int n_extents;
    char scratch[16][192];
    int next;
};

static double unit(struct gen *g)
{
    return random_unit(&g->rng);
}

static bool chance(struct gen *g, double p)
{
    return unit(g) < p;
}

/* A whole number in lo..hi. */
static int whole(struct gen *g, int lo, int hi)
{
    return hi <= lo ? lo : lo + (int)(unit(g) * (hi - lo + 1));
}

static int multiples(double lo, double hi, double step)
{
    return (int)floor(hi / step + 1e-9) - (int)ceil(lo / step - 1e-9) + 1;
}

/* A multiple of step in lo..hi (hi at least lo).  Even sizes: of 5, 4 or 2 where there are seven of them, whole where there are
 * three: sums of sizes, which a part is full of, are then of a few hundred pairs, and a model can know them all. */
static double size(struct gen *g, double lo, double hi, double step)
{
    static const double coarse[] = {5, 4, 2, 1};
    for (size_t i = 0; g->even && i < ARRAY_LEN(coarse); i++)
        if (coarse[i] > step && fmod(coarse[i], step) == 0 && multiples(lo, hi, coarse[i]) >= (coarse[i] > 1 ? 7 : 3)) {
            step = coarse[i];
            break;
        }
    int a = (int)ceil(lo / step - 1e-9);
    return whole(g, a, a + multiples(lo, hi, step) - 1) * step;
}

/* A height of lo..hi over a run, in one of a few slopes, as machinists have them: a cone's text states its angle in
 * radians, a number that can be known for a few slopes, but not worked out of the sizes. */
static double taper(struct gen *g, double run, double lo, double hi)
{
    static const double fine[] = {0.25, 0.5, 1, 1.5, 2, 2.5, 3, 4, 5, 6, 8, 10}, even[] = {0.5, 1, 2, 3, 4};
    const double *slopes = g->even ? even : fine;
    int a = 0, z = (int)(g->even ? ARRAY_LEN(even) : ARRAY_LEN(fine)) - 1;
    while (a < z && run * slopes[a] < lo - 1e-9)
        a++;
    while (z > a && run * slopes[z] > hi + 1e-9)
        z--;
    return run * slopes[whole(g, a, z)];
}

static char *scratch(struct gen *g)
{
    return g->scratch[g->next++ % (int)ARRAY_LEN(g->scratch)];
}

/* One of "a|b|c". */
static const char *pick(struct gen *g, const char *choices)
{
    int n = 1;
    for (const char *s = choices; *s; s++)
        n += *s == '|';
    int k = whole(g, 0, n - 1);
    while (k-- > 0)
        choices = strchr(choices, '|') + 1;
    char *out = scratch(g);
    snprintf(out, sizeof g->scratch[0], "%.*s", (int)strcspn(choices, "|"), choices);
    return out;
}

static __attribute__((format(printf, 2, 3))) const char *text(struct gen *g, const char *fmt, ...)
{
    char *out = scratch(g);
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(out, sizeof g->scratch[0], fmt, ap);
    va_end(ap);
    return out;
}

static const char *word(int n)
{
    static const char *const words[] = {"no",  "one",   "two",   "three", "four", "five",  "six",
                                        "seven", "eight", "nine", "ten",   "eleven", "twelve"};
    return n >= 0 && n < (int)ARRAY_LEN(words) ? words[n] : "multiple";
}

/* The sentence, without its full stop. */
static __attribute__((format(printf, 2, 3))) void say(struct gen *g, const char *fmt, ...)
{
    va_list ap;
    va_start(ap, fmt);
    char line[512];
    vsnprintf(line, sizeof line, fmt, ap);
    va_end(ap);
    buf_puts(&g->plain, line);
}

/* A size of a portion that is named like one of the whole: the base's thickness. */
static void portion(struct gen *g, double mm, const char *what)
{
    buf_printf(&g->sizes, "%s%g mm %s", g->n_sizes++ ? "\n" : "", mm, what);
}

/* A size of the whole: dim(g, 80, "long"). */
static void dim(struct gen *g, double mm, const char *what)
{
    portion(g, mm, what);
    g->extent[g->n_extents++] = mm;
}

static const char *caption_style = "mixed";

/* A size that only varied captions tell: the others, of datasets/sample, stay as they were. */
static void dim_varied(struct gen *g, double mm, const char *what)
{
    if (!strcmp(caption_style, "varied"))
        dim(g, mm, what);
}

/* A size of a detail, said last: "6 mm holes". */
static __attribute__((format(printf, 2, 3))) void detail(struct gen *g, const char *fmt, ...)
{
    char line[128];
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(line, sizeof line, fmt, ap);
    va_end(ap);
    /* "an 8 mm hole", "an 11.5 mm bore" */
    double first = strncmp(line, "a ", 2) == 0 ? strtod(line + 2, NULL) : 0;
    bool vowel = line[2] == '8' || (int)first == 11 || (int)first == 18;
    buf_printf(&g->with, "%s%s%s", g->with.n ? "\n" : "", first > 0 && vowel ? "an" : "", line + (first > 0 && vowel));
}

/* ---- profiles ---- */
static void point(struct gen *g, double x, double y, double bulge)
{
    g->p[g->n_points++] = (struct occ_point){x, y, bulge};
}

/* The points since the last loop become one. */
static void close_loop(struct gen *g)
{
    const struct occ_point *from = g->p;
    if (g->n_loops)
        for (int i = 0; i < g->n_loops; i++)
            from += g->loop[i].n;
    g->loop[g->n_loops++] = (struct occ_loop){.p = from, .n = g->n_points - (int)(from - g->p)};
}

static void circle(struct gen *g, double x, double y, double r)
{
    g->loop[g->n_loops++] = (struct occ_loop){.cx = x, .cy = y, .r = r};
}

static const double QUARTER = 0.41421356237309503; /* bulge of a quarter circle */

static void rect(struct gen *g, double x, double y, double w, double h, double corner)
{
    double l = x - w / 2, r = x + w / 2, b = y - h / 2, t = y + h / 2, c = corner;
    if (c <= 0) {
        point(g, l, b, 0), point(g, r, b, 0), point(g, r, t, 0), point(g, l, t, 0);
    } else {
        point(g, l + c, b, 0), point(g, r - c, b, QUARTER), point(g, r, b + c, 0), point(g, r, t - c, QUARTER);
        point(g, r - c, t, 0), point(g, l + c, t, QUARTER), point(g, l, t - c, 0), point(g, l, b + c, QUARTER);
    }
    close_loop(g);
}

/* A slot with round ends, along x. */
static void obround(struct gen *g, double x, double y, double length, double width)
{
    double h = (length - width) / 2, r = width / 2;
    point(g, x - h, y - r, 0), point(g, x + h, y - r, 1), point(g, x + h, y + r, 0), point(g, x - h, y + r, 1);
    close_loop(g);
}

/* n corners, the first at angle `turn` (degrees), at radius r. */
static void regular(struct gen *g, int n, double r, double turn)
{
    for (int i = 0; i < n; i++) {
        double a = turn * M_PI / 180 + 2 * M_PI * i / n;
        point(g, r * cos(a), r * sin(a), 0);
    }
    close_loop(g);
}

static void bolt_circle(struct gen *g, int n, double r_circle, double r_hole)
{
    for (int i = 0; i < n; i++) {
        double a = 2 * M_PI * i / n;
        circle(g, r_circle * cos(a), r_circle * sin(a), r_hole);
    }
}

/* Raises the profile, and forgets it. */
static int extrude(struct gen *g, struct occ_frame f, double height)
{
    int s = occ_extrude(g->b, f, g->loop, g->n_loops, height);
    g->n_points = g->n_loops = 0;
    return s;
}

/* Turns the points (radius, z) about the z axis, and forgets them. */
static int revolve(struct gen *g)
{
    int s = occ_revolve(g->b, g->p, g->n_points, 360);
    g->n_points = 0;
    return s;
}

static int upright(struct gen *g, double x, double y, double z, double r, double h)
{
    return occ_cylinder(g->b, OCC_Z(x, y, z), r, h);
}

/* ---- families: each returns its solid and has said what it is ---- */

static void plate_sizes(struct gen *g, double w, double d, double t)
{
    if (w == d) {
        dim(g, w, "wide");
    } else {
        dim(g, w, "long");
        dim(g, d, "wide");
    }
    dim(g, t, "thick");
}

static int plate(struct gen *g)
{
    bool square = chance(g, 0.25);
    double d = size(g, 20, 80, 5), w = square ? d : size(g, d + 10, d + 80, 5), t = size(g, 2, 8, 1);
    double corner = chance(g, 0.3) ? size(g, 2, d / 8, 1) : 0;
    int mode = whole(g, 0, 6);
    rect(g, 0, 0, w, d, corner);
    const char *holes = "";
    double r = size(g, 1.5, d / 10, 0.5), x = w / 2 - d / 5, y = d / 2 - d / 5;
    switch (mode) {
    case 0:
        break;
    case 1:
        r = size(g, d / 10, d / 3, 1);
        circle(g, 0, 0, r);
        holes = pick(g, " with a central circular hole| with a central through hole| with a circular hole in the center");
        detail(g, "a %g mm hole", 2 * r);
        break;
    case 2:
        circle(g, -x, 0, r), circle(g, x, 0, r);
        holes = pick(g, " with two circular holes| with two mounting holes| with two through holes");
        detail(g, "%g mm holes", 2 * r);
        break;
    case 3:
        circle(g, -x, -y, r), circle(g, x, -y, r), circle(g, x, y, r), circle(g, -x, y, r);
        holes = pick(g, " with four corner holes| with four mounting holes at the corners| with four circular holes");
        detail(g, "%g mm holes", 2 * r);
        break;
    case 4: {
        int n = whole(g, 3, 5);
        for (int i = 0; i < n; i++)
            circle(g, -x + 2 * x * i / (n - 1), 0, fmin(r, x / n));
        r = fmin(r, x / n);
        holes = text(g, " with %s %s", word(n), pick(g, "holes in a row|evenly spaced circular holes|aligned holes"));
        detail(g, "%.4g mm holes", 2 * r);
        break;
    }
    case 5: {
        double big = size(g, d / 8, d / 5, 1);
        circle(g, 0, 0, big);
        circle(g, -x, -y, r), circle(g, x, -y, r), circle(g, x, y, r), circle(g, -x, y, r);
        holes = pick(g, " with a central circular hole and four corner holes| with a large central hole and four "
                        "smaller holes at the corners");
        detail(g, "a %g mm central hole", 2 * big);
        detail(g, "%g mm corner holes", 2 * r);
        break;
    }
    default: {
        double width = size(g, 4, d / 4, 1), length = size(g, width + 5, fmax(width + 5, w * 0.6), 1);
        if (g->even) /* centres of the ends at whole numbers */
            length += fmod(length - width, 2);
        obround(g, 0, 0, length, width);
        holes = pick(g, " with a central slot| with an elongated slot in the center| with a central elongated slot");
        detail(g, "a %g mm by %g mm slot", length, width);
    }
    }
    const char *shape = square ? "square" : "rectangular";
    if (corner > 0 && chance(g, 0.8))
        say(g, "A flat %s plate with rounded corners%s%s", shape, *holes ? " and" : "",
            *holes ? holes + strlen(" with") : "");
    else if (chance(g, 0.3))
        say(g, "A flat, %s plate%s", shape, holes);
    else
        say(g, "A flat %s plate%s", shape, holes);
    if (corner > 0)
        detail(g, "%g mm corner radii", corner);
    plate_sizes(g, w, d, t);
    return extrude(g, OCC_Z(0, 0, 0), t);
}

static int block(struct gen *g)
{
    bool cube = chance(g, 0.15);
    double w = size(g, 20, 80, 5), d = cube ? w : size(g, 15, w, 5), h = cube ? w : size(g, 10, w, 5);
    cube = w == d && d == h;
    const char *name = cube ? "cube" : "rectangular block";
    int mode = whole(g, 0, 7), s;
    double r = size(g, d / 10, d / 4, 1);
    if (mode == 2 || mode == 3 || mode == 4) {
        rect(g, 0, 0, w, d, mode == 4 ? r : 0);
        if (mode == 2)
            circle(g, 0, 0, r);
        if (mode == 3)
            rect(g, 0, 0, 2 * r, size(g, r, r * 1.5, 1), 0);
        s = extrude(g, OCC_Z(0, 0, 0), h);
    } else {
        s = occ_box(g->b, 0, 0, h / 2, w, d, h);
    }
    switch (mode) {
    case 2:
        say(g, "A %s with a %s", name, pick(g, "central circular hole|central through hole|circular through hole|circular hole"));
        detail(g, "a %g mm hole", 2 * r);
        break;
    case 3:
        say(g, "A %s with a %s", name, pick(g, "central rectangular cutout|rectangular through hole|rectangular hole"));
        break;
    case 4:
        say(g, "A %s with %s", name, pick(g, "rounded vertical edges|four rounded vertical edges"));
        detail(g, "%g mm edge radii", r);
        break;
    case 5: {
        double depth = size(g, h / 4, h / 2, 1);
        s = occ_cut(g->b, s, upright(g, 0, 0, h - depth, r, depth));
        say(g, "A %s with a %s", name,
            pick(g, "circular indentation on one face|blind circular hole|circular recess on the top face"));
        detail(g, "a recess %g mm wide and %g mm deep", 2 * r, depth);
        break;
    }
    case 6: {
        double width = size(g, w / 6, w / 3, 1), depth = size(g, h / 4, h / 2, 1);
        s = occ_cut(g->b, s, occ_box(g->b, 0, 0, h - depth / 2, width, d, depth));
        say(g, "A %s with a %s", name,
            pick(g, "rectangular slot across the top|rectangular groove on top|rectangular channel along one face"));
        detail(g, "a slot %g mm wide and %g mm deep", width, depth);
        break;
    }
    case 7: {
        double c = size(g, 1, fmin(h, d) / 6, 0.5);
        s = occ_chamfer(g->b, s, OCC_EDGES_TOP, c);
        say(g, "A %s with %s", name, pick(g, "a beveled top edge|chamfered edges on top|beveled edges around its top face"));
        detail(g, "%g mm chamfers", c);
        break;
    }
    default:
        say(g, "A %s", name);
    }
    if (cube) {
        dim(g, w, "on each side");
    } else {
        dim(g, w, "long"), dim(g, d, "wide"), dim(g, h, "high");
    }
    return s;
}

static int boss(struct gen *g)
{
    double w = size(g, 25, 80, 5), d = size(g, 20, w, 5), t = size(g, 4, 15, 1);
    double r = size(g, d / 8, d / 3, 1), h = size(g, 5, 40, 1);
    const char *name = t < d / 5 ? "flat rectangular plate" : "rectangular block";
    int s = occ_box(g->b, 0, 0, t / 2, w, d, t);
    if (chance(g, 0.35)) {
        double w2 = size(g, w / 4, w / 2, 1), d2 = size(g, d / 4, d / 2, 1);
        s = occ_fuse(g->b, s, occ_box(g->b, 0, 0, t + h / 2, w2, d2, h));
        say(g, "A %s with a %s", name,
            pick(g, "smaller rectangular protrusion on top|smaller rectangular block on top|rectangular boss on one face"));
        detail(g, "a protrusion %g mm by %g mm and %g mm high", w2, d2, h);
    } else {
        s = occ_fuse(g->b, s, upright(g, 0, 0, t, r, h));
        const char *hole = "";
        if (chance(g, 0.4)) {
            double bore = size(g, r * 0.4, r * 0.7, 0.5);
            s = occ_cut(g->b, s, upright(g, 0, 0, 0, bore, t + h));
            hole = pick(g, " and a central through hole| and a hole through its center");
            detail(g, "a %g mm hole", 2 * bore);
        }
        say(g, "A %s with a %s%s", name,
            pick(g, "cylindrical protrusion on top|cylindrical boss on one face|cylinder on top|cylindrical protrusion on one face"),
            hole);
        detail(g, "a boss %g mm in diameter and %g mm high", 2 * r, h);
    }
    dim(g, w, "long"), dim(g, d, "wide"), portion(g, t, "thick");
    return s;
}

static int disc(struct gen *g)
{
    double r = size(g, 10, 60, 1), t = size(g, 1, fmax(1, r / 4), 0.5);
    circle(g, 0, 0, r);
    int mode = whole(g, 0, 4), n = whole(g, 3, 8);
    double hole = size(g, 1, fmax(1, r / 10), 0.5), bore = size(g, r / 6, r / 3, 0.5);
    const char *name = pick(g, "flat circular disc|circular disc|thin circular disc|round flat plate");
    switch (mode) {
    case 0:
        say(g, "A %s", name);
        break;
    case 1:
        circle(g, 0, 0, bore);
        say(g, "A %s with a %s", name, pick(g, "central hole|central circular hole|circular hole in the center"));
        detail(g, "a %g mm hole", 2 * bore);
        break;
    case 2:
        bolt_circle(g, n, r * 0.7, hole);
        say(g, "A %s with %s %s", name, word(n), pick(g, "evenly spaced holes|circular holes|holes around its edge"));
        detail(g, "%g mm holes", 2 * hole);
        break;
    case 3: {
        double half = size(g, r / 8, r / 4, 0.5);
        rect(g, 0, 0, 2 * half, 2 * half, 0);
        say(g, "A %s with a %s", name, pick(g, "central square hole|square hole in the center|square cutout in the center"));
        detail(g, "a %g mm square hole", 2 * half);
        break;
    }
    default: {
        regular(g, 6, bore, 0);
        say(g, "A %s with a %s", name, pick(g, "central hexagonal hole|hexagonal hole in the center"));
        detail(g, "a hexagonal hole %.4g mm across its corners", 2 * bore);
    }
    }
    dim(g, 2 * r, "in diameter"), dim(g, t, "thick");
    return extrude(g, OCC_Z(0, 0, 0), t);
}

static int washer(struct gen *g)
{
    double r = size(g, 4, 40, 0.5), bore = size(g, r * 0.4, r * 0.65, 0.5), t = size(g, 0.5, fmax(0.5, r / 5), 0.5);
    circle(g, 0, 0, r), circle(g, 0, 0, bore);
    say(g, "%s", pick(g, "A flat ring or washer|A flat washer with a central hole|A flat circular washer with a central hole|"
                         "A flat circular disc with a central hole, resembling a washer|A flat circular ring|A washer"));
    dim(g, 2 * r, "in diameter"), dim(g, t, "thick");
    detail(g, "a %g mm hole", 2 * bore);
    return extrude(g, OCC_Z(0, 0, 0), t);
}

static int ring(struct gen *g)
{
    double r = size(g, 10, 60, 1);
    bool thin = chance(g, 0.5);
    double bore = thin ? size(g, r * 0.85, r * 0.93, 0.5) : size(g, r * 0.5, r * 0.7, 0.5);
    double h = size(g, fmax(1, r / 10), r * 0.6, 0.5);
    circle(g, 0, 0, r), circle(g, 0, 0, bore);
    say(g, "%s", thin ? pick(g, "A thin circular ring|A thin cylindrical ring|A thin-walled ring|A hollow cylindrical ring")
                      : pick(g, "A cylindrical ring with a thick wall|A thick ring with a central hole|A cylindrical ring with a central hole"));
    dim(g, 2 * r, "in diameter"), dim(g, h, "high");
    detail(g, "a %g mm bore", 2 * bore);
    return extrude(g, OCC_Z(0, 0, 0), h);
}

static int tube(struct gen *g)
{
    double r = size(g, 5, 30, 0.5), bore = size(g, r * 0.5, r * 0.85, 0.5), h = size(g, 2.5 * r, 8 * r, 1);
    bool square = chance(g, 0.3);
    if (square) {
        rect(g, 0, 0, 2 * r, 2 * r, 0), rect(g, 0, 0, 2 * bore, 2 * bore, 0);
        say(g, "A %s", pick(g, "hollow square tube|square tube with a hollow interior|long hollow tube with a square cross-section"));
        dim(g, 2 * r, "wide");
        detail(g, "walls %g mm thick", r - bore);
    } else {
        circle(g, 0, 0, r), circle(g, 0, 0, bore);
        say(g, "A %s", pick(g, "hollow cylindrical tube|cylindrical tube with a hollow interior|hollow cylindrical pipe|cylindrical sleeve|hollow cylinder"));
        dim(g, 2 * r, "in diameter");
        detail(g, "a %g mm bore", 2 * bore);
    }
    dim(g, h, "long");
    return extrude(g, OCC_Z(0, 0, 0), h);
}

static int bushing(struct gen *g)
{
    double bore = size(g, 2, 20, 0.5), r = bore + size(g, 1, 6, 0.5), rf = r + size(g, 2, 10, 0.5);
    double t = size(g, 1.5, 6, 0.5), h = t + size(g, r, 3 * r, 1);
    point(g, bore, 0, 0), point(g, rf, 0, 0), point(g, rf, t, 0), point(g, r, t, 0), point(g, r, h, 0), point(g, bore, h, 0);
    say(g, "A cylindrical %s with a %s", pick(g, "bushing|sleeve"),
        pick(g, "flanged base and a central hole|flange at one end and a central hole|flanged end and a through hole|flanged base and a central through hole"));
    dim(g, h, "long");
    detail(g, "a %g mm bore", 2 * bore);
    detail(g, "a flange %g mm in diameter", 2 * rf);
    return revolve(g);
}

static int flange(struct gen *g)
{
    double r = size(g, 25, 80, 1), t = size(g, 4, 12, 1), bore = size(g, r * 0.2, r * 0.4, 1);
    int n = (int[]){3, 4, 6, 8}[whole(g, 0, 3)];
    double hole = size(g, 1.5, fmax(2, r * 0.07), 0.5), pitch = size(g, r * 0.72, r * 0.8, 1);
    const char *holes = text(g, "%s bolt holes", chance(g, 0.8) ? word(n) : "evenly spaced");
    int s;
    if (chance(g, 0.5)) {
        circle(g, 0, 0, r), circle(g, 0, 0, bore);
        bolt_circle(g, n, pitch, hole);
        s = extrude(g, OCC_Z(0, 0, 0), t);
        say(g, "A %s with %s", pick(g, "round flange|flat circular flange|circular flange"),
            pick(g, text(g, "a central hole and %s|%s and a central circular opening|%s around a central hole", holes, holes, holes)));
        dim_varied(g, t, "thick");
    } else {
        double hub = size(g, bore + 3, r * 0.58, 1), h = t + size(g, 5, r / 2, 1);
        point(g, bore, 0, 0), point(g, r, 0, 0), point(g, r, t, 0), point(g, hub, t, 0), point(g, hub, h, 0), point(g, bore, h, 0);
        s = revolve(g);
        s = occ_cut(g->b, s, occ_polar(g->b, upright(g, pitch, 0, 0, hole, t), OCC_Z(0, 0, 0), n));
        say(g, "A %s with a %s and %s", pick(g, "round flange|circular flange|hub flange"),
            pick(g, "raised hub, a central hole|cylindrical hub, a central bore|raised central hub with a through hole"), holes);
        dim(g, h, "high");
        detail(g, "a hub %g mm in diameter", 2 * hub);
    }
    dim(g, 2 * r, "in diameter");
    detail(g, "a %g mm bore", 2 * bore);
    detail(g, "%g mm bolt holes", 2 * hole);
    return s;
}

static int bolt(struct gen *g)
{
    double m = size(g, 1.5, 8, 0.5), length = size(g, 4 * m, 14 * m, 1), head = size(g, m * 1.2, m * 1.6, 0.5);
    double across = round(m * 1.75 * 2) / 2; /* half the width across the flats */
    int s;
    if (chance(g, 0.6)) {
        regular(g, 6, across / cos(M_PI / 6), 0);
        s = extrude(g, OCC_Z(0, 0, 0), head);
        s = occ_fuse(g->b, s, upright(g, 0, 0, head, m, length));
        say(g, "%s", pick(g, "A cylindrical rod with a hexagonal head|A hexagonal bolt with a cylindrical shaft|A hexagonal bolt|"
                             "A bolt with a hexagonal head and a cylindrical shaft"));
        detail(g, "a head %g mm across the flats", 2 * across);
    } else {
        double socket = round(m * 0.9 * 2) / 2, deep = head / 2;
        s = occ_fuse(g->b, upright(g, 0, 0, 0, across, head), upright(g, 0, 0, head, m, length));
        regular(g, 6, socket / cos(M_PI / 6), 0);
        s = occ_cut(g->b, s, extrude(g, OCC_Z(0, 0, 0), deep));
        say(g, "%s", pick(g, "A cylindrical bolt with a hexagonal socket head|A cylindrical rod with a hexagonal socket head|"
                             "A bolt with a hexagonal socket head and a cylindrical shaft"));
        detail(g, "a head %g mm in diameter", 2 * across);
    }
    if (chance(g, 0.3)) {
        double c = fmin(1, m / 3);
        c = round(c * 10) / 10;
        s = occ_chamfer(g->b, s, OCC_EDGES_TOP, c);
    }
    dim(g, head + length, "long");
    detail(g, "a shaft %g mm in diameter", 2 * m);
    return s;
}

static int nut(struct gen *g)
{
    double m = size(g, 1.5, 12, 0.5), across = round(m * 1.75 * 2) / 2, h = size(g, m * 1.2, m * 2, 0.5);
    regular(g, 6, across / cos(M_PI / 6), 0);
    circle(g, 0, 0, m);
    int s = extrude(g, OCC_Z(0, 0, 0), h);
    if (chance(g, 0.3)) {
        double t = size(g, 1, 3, 0.5), rf = ceil(across / cos(M_PI / 6)) + 1;
        circle(g, 0, 0, rf), circle(g, 0, 0, m);
        s = occ_fuse(g->b, s, extrude(g, OCC_Z(0, 0, -t), t));
        say(g, "A hexagonal nut with a flanged base and a %s", pick(g, "central hole|central circular hole|central through hole"));
        detail(g, "a flange %g mm in diameter", 2 * rf);
        h += t;
    } else {
        say(g, "%s", pick(g, "A hexagonal nut with a central circular hole|A hexagonal nut with a central through hole|A hexagonal nut|"
                             "A hexagonal block with a central circular hole"));
    }
    dim(g, h, "high");
    detail(g, "a %g mm hole", 2 * m);
    detail(g, "%g mm across the flats", 2 * across);
    return s;
}

static int shaft(struct gen *g)
{
    int n = whole(g, 2, 4);
    double z = 0, r = size(g, 4, 16, 0.5), widest = 0, last = 0;
    bool taper_down = chance(g, 0.5);
    point(g, 0, 0, 0);
    for (int i = 0; i < n; i++) {
        if (i)
            r = taper_down ? last * size(g, 0.6, 0.85, 0.05) : i == n / 2 ? last * size(g, 1.3, 1.6, 0.1) : last * size(g, 0.6, 0.8, 0.1);
        r = g->even ? fmax(1, round(r)) : fmax(1, round(r * 2) / 2);
        if (r == last)
            r += g->even ? 1 : 0.5;
        double length = size(g, 5, 40, 1);
        point(g, r, z, 0), point(g, r, z += length, 0);
        last = r;
        widest = fmax(widest, r);
    }
    point(g, 0, z, 0);
    say(g, "%s", pick(g, text(g, "A stepped cylindrical shaft with %s sections|A cylindrical rod with %s stepped sections|"
                                "A stepped shaft of %s cylinders", word(n), word(n), word(n))));
    dim(g, z, "long");
    detail(g, "a largest diameter of %g mm", 2 * widest);
    return revolve(g);
}

static int rod(struct gen *g)
{
    double r = size(g, 2, 15, 0.5), h = size(g, 5 * r, 12 * r, 1), z = 0, tip = taper(g, r, r, 2.5 * r);
    bool flanged = chance(g, 0.55), conical = chance(g, 0.4), round_tip = !conical && chance(g, 0.3);
    bool bored = !conical && !round_tip && chance(g, 0.35);
    double bore = bored ? size(g, r * 0.4, r * 0.6, 0.5) : 0, rf = r + size(g, fmax(2, r / 2), r * 1.5, 0.5), t = size(g, 1.5, 6, 0.5);
    point(g, bore, 0, 0);
    if (flanged) {
        point(g, rf, 0, 0), point(g, rf, t, 0), point(g, r, t, 0);
        z = t;
        detail(g, "a base %g mm in diameter", 2 * rf);
    } else {
        point(g, r, 0, 0);
    }
    z += h;
    point(g, r, z, round_tip ? QUARTER : 0);
    if (conical || round_tip)
        point(g, 0, z += conical ? tip : r, 0);
    else
        point(g, bore, z, 0);
    if (conical && flanged)
        say(g, "A cylindrical rod with a %s", pick(g, "conical tip and a flanged base|flanged base and a conical tip"));
    else if (conical)
        say(g, "A cylindrical rod with a %s", pick(g, "conical tip|pointed conical end"));
    else if (round_tip)
        say(g, "A cylindrical rod with a %s%s", flanged ? "flanged base and a " : "", pick(g, "rounded tip|hemispherical end"));
    else if (bored)
        say(g, "A cylindrical rod with a %scentral %shole", flanged ? "flanged base and a " : "", pick(g, "|through "));
    else if (flanged)
        say(g, "A cylindrical rod with a %s", pick(g, "flanged base|flange at one end|wide flat base"));
    else
        say(g, "A %s", pick(g, "cylindrical rod|long cylindrical rod|cylinder|solid cylindrical rod"));
    if (bored)
        detail(g, "a %g mm bore", 2 * bore);
    dim(g, z, "long");
    if (flanged)
        portion(g, 2 * r, "in diameter"); /* the rod is, its base is wider */
    else
        dim(g, 2 * r, "in diameter");
    return revolve(g);
}

static int channel(struct gen *g)
{
    double w = size(g, 20, 60, 2), h = size(g, 15, 50, 1), t = size(g, 2, 5, 0.5), length = size(g, w, 4 * w, 5);
    double o = w / 2, i = w / 2 - t;
    int kind = whole(g, 0, 5);
    const char *what = "";
    switch (kind) {
    case 0:
        point(g, -o, 0, 0), point(g, o, 0, 0), point(g, o, h, 0), point(g, i, h, 0), point(g, i, t, 0), point(g, -i, t, 0);
        point(g, -i, h, 0), point(g, -o, h, 0);
        what = pick(g, "A U-shaped channel|A U-shaped channel with a flat base and vertical sides|A long U-shaped channel");
        break;
    case 1:
        point(g, 0, 0, 0), point(g, w, 0, 0), point(g, w, t, 0), point(g, t, t, 0), point(g, t, h, 0), point(g, 0, h, 0);
        what = pick(g, "An L-shaped profile|A long L-shaped angle bar|An L-shaped channel");
        break;
    case 2:
        point(g, -o, h, 0), point(g, -o, h - t, 0), point(g, -t / 2, h - t, 0), point(g, -t / 2, 0, 0), point(g, t / 2, 0, 0);
        point(g, t / 2, h - t, 0), point(g, o, h - t, 0), point(g, o, h, 0);
        what = pick(g, "A T-shaped beam|A long bar with a T-shaped cross-section|A T-shaped profile");
        break;
    case 3:
        point(g, -o, 0, 0), point(g, o, 0, 0), point(g, o, t, 0), point(g, t / 2, t, 0), point(g, t / 2, h - t, 0), point(g, o, h - t, 0);
        point(g, o, h, 0), point(g, -o, h, 0), point(g, -o, h - t, 0), point(g, -t / 2, h - t, 0), point(g, -t / 2, t, 0), point(g, -o, t, 0);
        what = pick(g, "An I-beam|An I-beam with a central web and flanges on both sides|A long, narrow I-beam with a consistent cross-section");
        break;
    case 4: /* a hat: flanges on the open ends */
        point(g, -o - 2 * t, 0, 0), point(g, -i, 0, 0), point(g, -i, h - t, 0), point(g, i, h - t, 0), point(g, i, 0, 0);
        point(g, o + 2 * t, 0, 0), point(g, o + 2 * t, t, 0), point(g, o, t, 0), point(g, o, h, 0), point(g, -o, h, 0);
        point(g, -o, t, 0), point(g, -o - 2 * t, t, 0);
        what = pick(g, "A U-shaped channel with flanges on the open ends|A hat-shaped channel with two flanges");
        w += 4 * t;
        break;
    default:
        point(g, -t / 2, -o, 0), point(g, t / 2, -o, 0), point(g, t / 2, -t / 2, 0), point(g, o, -t / 2, 0), point(g, o, t / 2, 0);
        point(g, t / 2, t / 2, 0), point(g, t / 2, o, 0), point(g, -t / 2, o, 0), point(g, -t / 2, t / 2, 0), point(g, -o, t / 2, 0);
        point(g, -o, -t / 2, 0), point(g, -t / 2, -t / 2, 0);
        what = pick(g, "A long, slender rod with a cross-shaped cross-section|A long bar with a cross-shaped cross-section");
        h = w;
    }
    close_loop(g);
    say(g, "%s", what);
    dim(g, length, "long"), dim(g, w, "wide"), dim(g, h, "high");
    detail(g, "walls %g mm thick", t);
    return extrude(g, OCC_Y(0, length / 2, 0), length);
}

static int l_bracket(struct gen *g)
{
    double a = size(g, 25, 70, 1), h = size(g, 20, 70, 1), t = size(g, 2, 8, 0.5), d = size(g, 15, 60, 1);
    double r = size(g, 1.5, fmin(4, d / 10), 0.5);
    point(g, 0, 0, 0), point(g, a, 0, 0), point(g, a, t, 0), point(g, t, t, 0), point(g, t, h, 0), point(g, 0, h, 0);
    close_loop(g);
    int s = extrude(g, OCC_Y(0, d / 2, 0), d), n = whole(g, 0, 2);
    double x = (a + t) / 2, z = (h + t) / 2;
    if (n) {
        int base = occ_grid(g->b, upright(g, x, 0, 0, r, t), 1, 0, n, d / 2);
        int wall = occ_grid(g->b, occ_cylinder(g->b, OCC_X(0, 0, z), r, t), 1, 0, n, d / 2);
        s = occ_cut(g->b, occ_cut(g->b, s, base), wall);
        say(g, "An L-shaped bracket %s",
            pick(g, n == 1 ? "with a circular hole in each leg|with two mounting holes, one on each leg|with two circular holes"
                           : "with two holes on each leg|with multiple holes for mounting|with multiple mounting holes|with four circular holes"));
        detail(g, "%g mm holes", 2 * r);
    } else {
        say(g, "An L-shaped bracket%s", pick(g, "| with a flat base and vertical support| with two flat legs"));
    }
    dim(g, a, "long"), dim(g, d, "wide"), dim(g, h, "high");
    detail(g, "legs %g mm thick", t);
    return s;
}

static int u_bracket(struct gen *g)
{
    double w = size(g, 25, 70, 1), h = size(g, 20, 50, 1), t = size(g, 2, 6, 0.5), d = size(g, 12, 40, 1);
    double o = w / 2, i = o - t, r = size(g, 1.5, fmin(d / 6, fmin(i / 4, h * 0.3 - 2)), 0.5);
    point(g, -o, 0, 0), point(g, o, 0, 0), point(g, o, h, 0), point(g, i, h, 0), point(g, i, t, 0), point(g, -i, t, 0);
    point(g, -i, h, 0), point(g, -o, h, 0);
    close_loop(g);
    int s = extrude(g, OCC_Y(0, d / 2, 0), d);
    if (chance(g, 0.5)) {
        s = occ_cut(g->b, s, occ_cylinder(g->b, OCC_X(-o, 0, h * 0.7), r, w));
        say(g, "A U-shaped bracket with %s",
            pick(g, "mounting holes on the ends of the arms|two parallel arms, each having a circular hole|a hole in each arm"));
        detail(g, "%g mm holes", 2 * r);
    } else if (chance(g, 0.7)) {
        double x = i * 0.6;
        s = occ_cut(g->b, s, occ_grid(g->b, upright(g, 0, 0, 0, r, t), 2, 2 * x, 1, 0));
        say(g, "A U-shaped bracket with %s", pick(g, "two mounting holes in its base|a flat base and two mounting holes|mounting holes on the base"));
        detail(g, "%g mm holes", 2 * r);
    } else {
        say(g, "A U-shaped bracket%s", pick(g, "| with a flat base and two vertical arms"));
    }
    dim(g, w, "wide"), dim(g, d, "deep"), dim(g, h, "high");
    detail(g, "walls %g mm thick", t);
    return s;
}

static int flanged_tube(struct gen *g)
{
    double bore = size(g, 5, 25, 0.5), r = bore + size(g, 2, 6, 0.5), rf = r + size(g, 8, 16, g->even ? 2 : 1), t = size(g, 3, 8, 1);
    double h = size(g, 3 * r, 7 * r, 1);
    bool both = chance(g, 0.6);
    int n = (int[]){0, 3, 4, 6}[whole(g, 0, 3)];
    point(g, bore, 0, 0), point(g, rf, 0, 0), point(g, rf, t, 0), point(g, r, t, 0);
    if (both)
        point(g, r, h - t, 0), point(g, rf, h - t, 0), point(g, rf, h, 0), point(g, bore, h, 0);
    else
        point(g, r, h, 0), point(g, bore, h, 0);
    int s = revolve(g);
    double hole = size(g, 1.5, 3, 0.5), pitch = (r + rf) / 2;
    if (n) {
        s = occ_cut(g->b, s, occ_polar(g->b, upright(g, pitch, 0, 0, hole, both ? h : t), OCC_Z(0, 0, 0), n));
        detail(g, "%g mm bolt holes", 2 * hole);
    }
    const char *ends = both ? pick(g, "flanges at both ends|flanged ends|a flange at each end") : pick(g, "a flange at one end|a flanged base");
    if (n)
        say(g, "A %s with %s and %s bolt holes%s", pick(g, "hollow cylindrical tube|cylindrical pipe|cylindrical tube"), ends, word(n),
            both ? " in each flange" : "");
    else
        say(g, "A %s with %s", pick(g, "hollow cylindrical tube|cylindrical pipe with a hollow interior|hollow tube"), ends);
    dim(g, h, "long"), dim(g, 2 * rf, "in diameter");
    detail(g, "a %g mm bore", 2 * bore);
    return s;
}

static int knob(struct gen *g)
{
    double r = size(g, 10, 30, 1), h = size(g, r * 0.5, r, 1);
    if (chance(g, 0.5)) {
        /* lobes: outward arcs between the corners of a polygon */
        int n = whole(g, 3, 8);
        for (int i = 0; i < n; i++) {
            double a = 2 * M_PI * i / n;
            point(g, r * cos(a), r * sin(a), tan(M_PI / n * 1.4 / 2 + 0.25));
        }
        close_loop(g);
        double bore = size(g, 2, r * 0.4, 0.5);
        circle(g, 0, 0, bore);
        say(g, "A %s with %s rounded lobes and a %s", pick(g, "knob|flat knob|lobed knob"), word(n), pick(g, "central hole|central through hole"));
        detail(g, "a %g mm hole", 2 * bore);
        dim(g, h, "thick");
        return extrude(g, OCC_Z(0, 0, 0), h);
    }
    double stem = size(g, r * 0.3, r * 0.5, 0.5), length = size(g, r * 0.5, r * 1.2, 1), edge = size(g, 1, h / 3, 0.5);
    point(g, 0, 0, 0), point(g, stem, 0, 0), point(g, stem, length, 0), point(g, r, length, 0);
    point(g, r, length + h - edge, QUARTER), point(g, r - edge, length + h, 0), point(g, 0, length + h, 0);
    say(g, "A cylindrical knob with a %s", pick(g, "narrow stem and a rounded top edge|cylindrical stem and a rounded top edge|thin stem and a rounded rim"));
    dim(g, 2 * r, "in diameter"), dim(g, length + h, "high");
    detail(g, "a stem %g mm in diameter", 2 * stem);
    return revolve(g);
}

static int gear(struct gen *g)
{
    int n = whole(g, 6, 10);
    double r = size(g, 12, 40, 1), root = round(r * 0.8), bore = size(g, r * 0.15, r * 0.35, 0.5), h = size(g, 3, 12, 1);
    double step = 2 * M_PI / n;
    for (int i = 0; i < n; i++) {
        double at[] = {0.0, 0.14, 0.36, 0.5};
        for (int k = 0; k < 4; k++) {
            double a = step * (i + at[k]), q = k == 1 || k == 2 ? r : root;
            point(g, q * cos(a), q * sin(a), 0);
        }
    }
    close_loop(g);
    circle(g, 0, 0, bore);
    say(g, "%s", pick(g, text(g, "A gear with %s teeth and a central hole|A gear-like disc with %s teeth and a central hole|"
                                "A flat gear with a central hole and %s teeth", word(n), word(n), word(n))));
    portion(g, 2 * r, "in diameter"), dim(g, h, "thick"); /* over the tips, which lie on a circle */
    detail(g, "a %g mm bore", 2 * bore);
    return extrude(g, OCC_Z(0, 0, 0), h);
}

static int t_slot(struct gen *g)
{
    double w = size(g, 20, 50, 2), h = size(g, 15, 40, 1), neck = size(g, w * 0.12, w * 0.2, 0.5), wide = size(g, w * 0.28, w * 0.38, 0.5);
    double lip = size(g, h * 0.12, h * 0.2, 0.5), deep = lip + size(g, h * 0.2, h * 0.3, 0.5), length = size(g, w, 4 * w, 5), o = w / 2;
    bool two = chance(g, 0.3);
    if (two) {
        point(g, -o, 0, 0), point(g, -neck, 0, 0), point(g, -neck, lip, 0), point(g, -wide, lip, 0), point(g, -wide, deep, 0);
        point(g, wide, deep, 0), point(g, wide, lip, 0), point(g, neck, lip, 0), point(g, neck, 0, 0);
        h = fmax(h, ceil(2 * deep + 4));
    } else {
        point(g, -o, 0, 0);
    }
    point(g, o, 0, 0), point(g, o, h, 0), point(g, neck, h, 0), point(g, neck, h - lip, 0), point(g, wide, h - lip, 0);
    point(g, wide, h - deep, 0), point(g, -wide, h - deep, 0), point(g, -wide, h - lip, 0), point(g, -neck, h - lip, 0);
    point(g, -neck, h, 0), point(g, -o, h, 0);
    close_loop(g);
    say(g, "%s", two ? pick(g, "A rectangular block with T-shaped slots on two opposite faces|A T-slot profile with a slot on two opposite sides")
                     : pick(g, "A rectangular block with a T-shaped slot along its length|A T-slot profile with one slot|A bar with a T-shaped slot on top"));
    dim(g, length, "long"), dim(g, w, "wide"), dim(g, h, "high");
    detail(g, "a slot opening of %g mm", 2 * neck);
    return extrude(g, OCC_Y(0, length / 2, 0), length);
}

static int enclosure(struct gen *g)
{
    double w = size(g, 30, 100, 5), d = size(g, 25, w, 5), h = size(g, 15, 50, 1), t = size(g, 1.5, 5, 0.5);
    if (chance(g, 0.3)) {
        double r = size(g, 15, 40, 1);
        point(g, 0, 0, 0), point(g, r, 0, 0), point(g, r, h, 0), point(g, r - t, h, 0), point(g, r - t, t, 0), point(g, 0, t, 0);
        say(g, "A %s", pick(g, "cylindrical cup with an open top|hollow cylindrical container with a flat base|cylindrical container with an open top"));
        dim(g, 2 * r, "in diameter"), dim(g, h, "high");
        detail(g, "walls %g mm thick", t);
        return revolve(g);
    }
    double corner = chance(g, 0.3) ? size(g, t + 1, t + 6, 1) : 0;
    rect(g, 0, 0, w, d, corner);
    int s = extrude(g, OCC_Z(0, 0, 0), h);
    rect(g, 0, 0, w - 2 * t, d - 2 * t, corner ? corner - t : 0);
    s = occ_cut(g->b, s, extrude(g, OCC_Z(0, 0, t), h));
    int holes = whole(g, 0, 2);
    const char *more = corner ? pick(g, " and rounded corners| and rounded vertical edges") : "";
    if (holes) {
        double r = size(g, 1.5, 4, 0.5), x = (w / 2 - t) / 2;
        if (holes == 1)
            s = occ_cut(g->b, s, upright(g, 0, 0, 0, r, t));
        else
            s = occ_cut(g->b, s, occ_grid(g->b, upright(g, 0, 0, 0, fmin(r, 3), t), 2, 2 * x, 1, 0));
        if (holes == 2)
            r = fmin(r, 3);
        more = text(g, "%s%s and %s", corner ? ", rounded corners" : "", "", holes == 1 ? "a circular hole in its base" : "two circular holes in its base");
        detail(g, holes == 1 ? "a %g mm hole" : "%g mm holes", 2 * r);
    }
    say(g, "A rectangular %s%s", pick(g, "box with an open top|enclosure with an open top|container with an open top|tray with an open top"), more);
    dim(g, w, "long"), dim(g, d, "wide"), dim(g, h, "high");
    detail(g, "walls %g mm thick", t);
    return s;
}

static int pulley(struct gen *g)
{
    double r = size(g, 12, 50, 1), bore = size(g, r * 0.15, r * 0.35, 0.5), h = size(g, 6, 20, 1), lip = size(g, 1, h / 5, 0.5);
    double deep = size(g, r * 0.12, r * 0.3, 0.5);
    int kind = whole(g, 0, 2);
    point(g, bore, 0, 0), point(g, r, 0, 0);
    if (kind == 0) {
        deep = taper(g, h / 2 - lip, r * 0.12, r * 0.3);
        point(g, r, lip, 0), point(g, r - deep, h / 2, 0), point(g, r, h - lip, 0);
    } else if (kind == 1) {
        point(g, r, lip, 0), point(g, r - deep, lip, 0), point(g, r - deep, h - lip, 0), point(g, r, h - lip, 0);
    } else {
        double q = (h - 2 * lip) / 2; /* a round groove: half a circle inwards */
        if (q > r - bore - 1)
            q = r - bore - 1;
        point(g, r, h / 2 - q, -1), point(g, r, h / 2 + q, 0);
    }
    point(g, r, h, 0), point(g, bore, h, 0);
    const char *groove = kind == 0 ? pick(g, "a V-shaped groove|a V-groove") : kind == 1 ? pick(g, "a rectangular groove|a flat groove") : pick(g, "a rounded groove|a round groove");
    if (chance(g, 0.5))
        say(g, "A %s with a central hole and %s around its circumference", pick(g, "cylindrical pulley|round pulley|cylindrical disc"), groove);
    else if (kind == 1)
        say(g, "A cylindrical pulley with a central hole and flanged edges");
    else
        say(g, "A %s with a central hole and a grooved %s", pick(g, "cylindrical pulley|round pulley"), pick(g, "edge|outer surface"));
    dim(g, 2 * r, "in diameter"), dim(g, h, "thick");
    detail(g, "a %g mm bore", 2 * bore);
    return revolve(g);
}

static int spool(struct gen *g)
{
    double r = size(g, 10, 40, 1), core = size(g, r * 0.4, r * 0.65, 0.5), t = size(g, 1.5, 6, 0.5), h = size(g, r, 3 * r, 1);
    bool bored = chance(g, 0.6);
    double bore = bored ? size(g, core * 0.3, core * 0.7, 0.5) : 0;
    point(g, bore, 0, 0), point(g, r, 0, 0), point(g, r, t, 0), point(g, core, t, 0), point(g, core, h - t, 0), point(g, r, h - t, 0);
    point(g, r, h, 0), point(g, bore, h, 0);
    if (bored) {
        say(g, "A %s", pick(g, "spool-shaped object with a central hole|cylindrical spool with a central hole|cylindrical spool with flanges and a central hole|"
                               "cylindrical spool with a central hole and flanged ends"));
        detail(g, "a %g mm hole", 2 * bore);
    } else {
        say(g, "A %s", pick(g, "dumbbell-shaped object with two discs connected by a cylindrical rod|cylindrical rod with flanged ends|solid cylindrical spool with flanges on both ends"));
    }
    dim(g, 2 * r, "in diameter"), dim(g, h, "long");
    return revolve(g);
}

static int wedge(struct gen *g)
{
    double w = size(g, 20, 80, 1), d = size(g, 10, 50, 1), h = size(g, 10, 50, 1);
    double wall = 0;
    int kind = whole(g, 0, 3);
    const char *what;
    if (kind == 0) {
        point(g, 0, 0, 0), point(g, w, 0, 0), point(g, 0, h, 0);
        what = pick(g, "A wedge-shaped block|A triangular prism|A right triangular prism");
    } else if (kind == 1) {
        double low = size(g, 2, h / 2, 1);
        point(g, 0, 0, 0), point(g, w, 0, 0), point(g, w, low, 0), point(g, 0, h, 0);
        what = pick(g, "A wedge-shaped block with a sloped top surface|A wedge-shaped block with a rectangular base and a sloped top");
    } else if (kind == 2) {
        double top = size(g, w / 4, w * 0.7, 1);
        point(g, -w / 2, 0, 0), point(g, w / 2, 0, 0), point(g, top / 2, h, 0), point(g, -top / 2, h, 0);
        what = pick(g, "A trapezoidal block|A trapezoidal prism|A block with two sloped sides");
    } else {
        wall = size(g, h / 4, h / 2, 1);
        point(g, -w / 2, 0, 0), point(g, w / 2, 0, 0), point(g, w / 2, wall, 0), point(g, 0, h, 0), point(g, -w / 2, wall, 0);
        what = pick(g, "A rectangular block with a triangular prism on top|A house-shaped block|A block with a gabled top");
    }
    close_loop(g);
    int s = extrude(g, OCC_Y(0, d / 2, 0), d);
    if (chance(g, 0.3)) {
        /* Not through a slope, where its rim would be an ellipse of numbers that no size tells. */
        double r = kind == 2 ? size(g, 1, fmin(d / 5, w / 12), 0.5) : size(g, 1, fmin(w, h) / 6, 0.5);
        double x = kind == 3 ? 0 : round(w / 4), z = kind == 3 ? wall : round(h / 4);
        s = occ_cut(g->b, s, kind == 2 ? upright(g, 0, 0, 0, r, h) : occ_cylinder(g->b, OCC_Y(x, d / 2, z), r, d));
        bool more = strstr(what, "with") || strstr(what, "on top");
        if (kind == 2)
            say(g, "%s%s", what, pick(g, more ? " and a vertical circular hole| and a circular through hole"
                                              : " with a circular hole through it| with a circular through hole"));
        else
            say(g, "%s%s", what, pick(g, more ? " and a circular hole from front to back| and a circular through hole"
                                              : " with a circular hole through it| with a circular through hole"));
        detail(g, "a %g mm hole", 2 * r);
    } else {
        say(g, "%s", what);
    }
    dim(g, w, "long"), dim(g, d, "wide"), dim(g, h, "high");
    return s;
}

static int cone(struct gen *g)
{
    double r = g->even ? 2 * whole(g, 4, 20) : size(g, 8, 40, 0.5);
    double top = size(g, r * 0.25, r * 0.7, 0.5), t = size(g, 1, fmax(1, top / 3), 0.5);
    int kind = whole(g, 0, 3);
    double h = taper(g, kind == 0 ? r : r - top, r * 0.8, r * 3);
    if (kind == 0) {
        say(g, "A %s", pick(g, "cone|solid cone|cone with a circular base"));
        point(g, 0, 0, 0), point(g, r, 0, 0), point(g, 0, h, 0);
    } else if (kind == 1) {
        say(g, "A %s", pick(g, "truncated cone|conical frustum|solid truncated cone"));
        point(g, 0, 0, 0), point(g, r, 0, 0), point(g, top, h, 0), point(g, 0, h, 0);
        detail(g, "a top %g mm in diameter", 2 * top);
    } else if (kind == 2) {
        double bore = size(g, 1, fmax(1, top * 0.6), 0.5);
        say(g, "A %s", pick(g, "conical frustum with a central through hole|truncated cone with a central through hole"));
        point(g, bore, 0, 0), point(g, r, 0, 0), point(g, top, h, 0), point(g, bore, h, 0);
        detail(g, "a %g mm hole", 2 * bore);
    } else {
        say(g, "A %s", pick(g, "hollow truncated cone|hollow conical frustum|hollow conical tube with a circular opening at each end"));
        point(g, r - t, 0, 0), point(g, r, 0, 0), point(g, top, h, 0), point(g, top - t, h, 0);
        detail(g, "a top %g mm in diameter", 2 * top);
    }
    dim(g, 2 * r, "in diameter at the base"), dim(g, h, "high");
    return revolve(g);
}

static int rounded(struct gen *g)
{
    double r = size(g, 8, 40, 0.5);
    switch (whole(g, 0, 4)) {
    case 0:
        say(g, "A %s", pick(g, "sphere|solid sphere|spherical object"));
        dim(g, 2 * r, "in diameter");
        return occ_sphere(g->b, 0, 0, 0, r);
    case 1:
        say(g, "A %s", pick(g, "hemisphere|hemispherical dome|hemispherical dome with a flat base"));
        dim(g, 2 * r, "in diameter");
        point(g, 0, 0, 0), point(g, r, 0, QUARTER), point(g, 0, r, 0);
        return revolve(g);
    case 2: {
        double tube_r = size(g, r * 0.1, r * 0.4, 0.5);
        say(g, "A %s", pick(g, "torus|thick ring or torus|torus with a central hole|ring with a circular cross-section"));
        dim(g, 2 * (r + tube_r), "in diameter");
        detail(g, "a tube %g mm thick", 2 * tube_r);
        return occ_torus(g->b, OCC_Z(0, 0, 0), r, tube_r);
    }
    case 3: {
        double t = size(g, 1, r / 4, 0.5);
        say(g, "A %s", pick(g, "hemispherical bowl|hollow hemisphere|bowl with a hemispherical shape"));
        dim(g, 2 * r, "in diameter");
        detail(g, "walls %g mm thick", t);
        point(g, 0, -r, QUARTER), point(g, r, 0, 0), point(g, r - t, 0, -QUARTER), point(g, 0, t - r, 0);
        return revolve(g);
    }
    default: {
        double h = size(g, r / 2, 2 * r, 1);
        say(g, "A %s", pick(g, "cylindrical block with a domed top|cylinder with a hemispherical top|dome-shaped cap with a cylindrical base"));
        dim(g, 2 * r, "in diameter"), dim(g, h + r, "high");
        point(g, 0, 0, 0), point(g, r, 0, 0), point(g, r, h, QUARTER), point(g, 0, h + r, 0);
        return revolve(g);
    }
    }
}

static int prism(struct gen *g)
{
    static const char *const names[] = {"triangular", "square", "pentagonal", "hexagonal", "heptagonal", "octagonal"};
    int n = (int[]){3, 5, 6, 8}[whole(g, 0, 3)];
    double r = size(g, 8, 40, 0.5), h = size(g, 4, 60, 1), in = r * cos(M_PI / n);
    regular(g, n, r, 90);
    bool hole = chance(g, 0.45);
    if (hole) {
        double bore = size(g, in * 0.2, in * 0.6, 0.5);
        circle(g, 0, 0, bore);
        detail(g, "a %g mm hole", 2 * bore);
    }
    const char *name = names[n - 3];
    const char *noun = h < r / 2 ? "plate" : h > 3 * r ? "rod" : "prism";
    say(g, "%s %s %s%s", strchr("aeiou", name[0]) ? "An" : "A", name, noun,
        hole ? pick(g, " with a central hole| with a central circular hole| with a central through hole") : "");
    dim(g, h, h < r / 2 ? "thick" : "long");
    detail(g, "corners on a circle of %g mm", 2 * r);
    return extrude(g, OCC_Z(0, 0, 0), h);
}

static int pyramid(struct gen *g)
{
    double w = size(g, 15, 60, 1), h = size(g, w * 0.4, w * 1.2, 1), base = size(g, w * 0.3, w, 1), top = size(g, w * 0.3, w * 0.7, 1);
    struct occ_point lo[4], hi[4];
    int kind = whole(g, 0, 2);
    for (int i = 0; i < 4; i++) {
        double x = i == 1 || i == 2 ? 0.5 : -0.5, y = i >= 2 ? 0.5 : -0.5;
        lo[i] = (struct occ_point){x * w, y * w, 0};
        hi[i] = (struct occ_point){kind == 1 ? x * top : 0, kind == 1 ? y * top : 0, 0};
    }
    if (kind == 2) {
        int s = occ_fuse(g->b, occ_box(g->b, 0, 0, base / 2, w, w, base), occ_loft(g->b, lo, base, hi, base + h, 4));
        say(g, "A %s with a pyramid on top%s", base == w ? "cube" : "square block", pick(g, "| of one face"));
        dim(g, w, "wide"), dim(g, base + h, "high");
        return s;
    }
    say(g, "A %s", kind == 1 ? pick(g, "truncated square pyramid|square pyramid with a flat top") : pick(g, "square pyramid|pyramid with a square base"));
    dim(g, w, "wide"), dim(g, h, "high");
    if (kind == 1)
        detail(g, "a top %g mm wide", top);
    return occ_loft(g->b, lo, 0, hi, h, 4);
}

static int frame(struct gen *g)
{
    bool square = chance(g, 0.4);
    double d = size(g, 25, 80, 5), w = square ? d : size(g, d + 5, d + 60, 5), t = size(g, 3, d / 5, 0.5), h = size(g, 2, 20, 1);
    double corner = chance(g, 0.2) ? size(g, t + 1, t + 5, 1) : 0;
    rect(g, 0, 0, w, d, corner), rect(g, 0, 0, w - 2 * t, d - 2 * t, corner ? corner - t : 0);
    say(g, "A %s frame%s", square ? "square" : "rectangular",
        corner ? " with rounded corners" : pick(g, "| with a hollow center| with a rectangular cross-section"));
    plate_sizes(g, w, d, h);
    detail(g, "sides %g mm wide", t);
    return extrude(g, OCC_Z(0, 0, 0), h);
}

static int stairs(struct gen *g)
{
    int n = whole(g, 2, 4);
    double run = size(g, 6, 20, 1), rise = size(g, 4, 15, 1), d = size(g, 15, 60, 1);
    point(g, 0, 0, 0), point(g, n * run, 0, 0);
    for (int i = 1; i <= n; i++)
        point(g, (n - i + 1) * run, i * rise, 0), point(g, (n - i) * run, i * rise, 0);
    g->n_points--; /* the last one is the corner above the first */
    point(g, 0, n * rise, 0);
    close_loop(g);
    say(g, "%s", n == 2 ? pick(g, "A rectangular block with a stepped edge|A stepped rectangular block|An L-shaped block with two steps")
                        : text(g, "A %s with %s steps", pick(g, "stepped block|staircase-shaped block"), word(n)));
    dim(g, n * run, "long"), dim(g, d, "wide"), dim(g, n * rise, "high");
    return extrude(g, OCC_Y(0, d / 2, 0), d);
}

static int flat_shape(struct gen *g)
{
    double w = size(g, 30, 80, 2), a = size(g, w * 0.15, w * 0.3, 1), t = size(g, 2, 10, 1), o = w / 2, h = a / 2;
    const char *what;
    int kind = whole(g, 0, 4);
    switch (kind) {
    case 0:
        point(g, -h, -o, 0), point(g, h, -o, 0), point(g, h, -h, 0), point(g, o, -h, 0), point(g, o, h, 0), point(g, h, h, 0);
        point(g, h, o, 0), point(g, -h, o, 0), point(g, -h, h, 0), point(g, -o, h, 0), point(g, -o, -h, 0), point(g, -h, -h, 0);
        what = pick(g, "flat cross-shaped plate|cross-shaped plate with four equal arms");
        break;
    case 1:
        point(g, 0, 0, 0), point(g, w, 0, 0), point(g, w, a, 0), point(g, a, a, 0), point(g, a, w, 0), point(g, 0, w, 0);
        what = pick(g, "flat L-shaped plate|L-shaped plate with two equal legs");
        break;
    case 2:
        point(g, -o, o, 0), point(g, -o, o - a, 0), point(g, -h, o - a, 0), point(g, -h, -o, 0), point(g, h, -o, 0), point(g, h, o - a, 0);
        point(g, o, o - a, 0), point(g, o, o, 0);
        what = pick(g, "flat T-shaped plate|T-shaped plate");
        break;
    case 3: /* a bar with round ends and a hole in each */
        point(g, -o, -a, 0), point(g, o, -a, 1), point(g, o, a, 0), point(g, -o, a, 1);
        what = pick(g, "flat bar with rounded ends and two circular holes|flat link with rounded ends and a hole at each end");
        break;
    default: /* a half disc */
        point(g, -o, 0, 1), point(g, o, 0, 0);
        what = pick(g, "semi-circular flat plate|flat semicircular plate|half disc");
    }
    close_loop(g);
    if (kind == 3) {
        double r = size(g, a * 0.3, a * 0.6, 0.5);
        circle(g, -o, 0, r), circle(g, o, 0, r);
        detail(g, "%g mm holes", 2 * r);
        dim_varied(g, 2 * a, "wide");
    }
    say(g, "%s %s", strncmp(what, "L-", 2) ? "A" : "An", what);
    dim(g, kind == 3 ? w + 2 * a : w, "long"), dim(g, t, "thick");
    return extrude(g, OCC_Z(0, 0, 0), t);
}

static int cradle(struct gen *g)
{
    double w = size(g, 25, 70, 1), h = size(g, 15, 40, 1), d = size(g, 10, 50, 1), r = size(g, w * 0.15, fmin(w * 0.35, h * 0.7), 0.5);
    bool arch = chance(g, 0.5);
    if (arch) { /* opening below */
        point(g, -w / 2, 0, 0), point(g, -r, 0, -1), point(g, r, 0, 0), point(g, w / 2, 0, 0), point(g, w / 2, h, 0), point(g, -w / 2, h, 0);
    } else {
        point(g, -w / 2, 0, 0), point(g, w / 2, 0, 0), point(g, w / 2, h, 0), point(g, r, h, -1), point(g, -r, h, 0), point(g, -w / 2, h, 0);
    }
    close_loop(g);
    say(g, "%s", arch ? pick(g, "A rectangular block with a semicircular arch through its base|A rectangular block with a semi-circular cutout at the bottom|An arch-shaped block")
                      : pick(g, "A rectangular block with a semicircular groove on top|A rectangular block with a semi-circular cutout on the top face"));
    dim(g, w, "long"), dim(g, d, "wide"), dim(g, h, "high");
    detail(g, "a cutout radius of %g mm", r);
    return extrude(g, OCC_Y(0, d / 2, 0), d);
}

/* Weight: how often a family comes up when all are chosen from.  Sums: its coordinates are sums of several sizes, which
 * --sizes even has few of. */
static const struct family {
    const char *name;
    int (*make)(struct gen *g);
    int weight;
    bool sums;
} families[] = {
    {"plate", plate, 6, true},     {"block", block, 6, true},       {"boss", boss, 4, true},         {"disc", disc, 4, false},
    {"washer", washer, 3, false},   {"ring", ring, 3, false},         {"tube", tube, 3, false},         {"bushing", bushing, 3, false},
    {"flange", flange, 4, true},   {"bolt", bolt, 4, false},         {"nut", nut, 3, false},           {"shaft", shaft, 3, true},
    {"rod", rod, 6, false},         {"channel", channel, 4, false},   {"l-bracket", l_bracket, 4, true}, {"u-bracket", u_bracket, 3, true},
    {"flanged-tube", flanged_tube, 3, true}, {"knob", knob, 2, true}, {"gear", gear, 1, true},       {"t-slot", t_slot, 2, true},
    {"enclosure", enclosure, 3, true}, {"pulley", pulley, 3, true}, {"spool", spool, 2, true},       {"wedge", wedge, 4, true},
    {"cone", cone, 3, true},       {"rounded", rounded, 3, false},   {"prism", prism, 3, false},       {"pyramid", pyramid, 2, true},
    {"frame", frame, 2, true},     {"stairs", stairs, 2, true},     {"flat", flat_shape, 3, false},   {"cradle", cradle, 2, true},
};

/* ---- the tool ---- */
static const char *out, *only, *excluded, *writer = "lean", *size_kind = "fine";
static int64_t count, seed = 1, start, max_entities, read_back_every = 1;

static struct opt options[] = {
    {.name = "count", .type = OPT_INT, .value = &count, .arg = "N", .help = "parts to make", .flags = OPT_REQUIRED, .min = 1, .max = 99999999},
    {.name = "seed", .type = OPT_INT, .value = &seed, .arg = "S", .help = "of the random numbers", .min = 0, .max = 9e15},
    {.name = "out", .type = OPT_STR, .value = &out, .arg = "DIR", .help = "receives steps/ID.step and captions.csv", .flags = OPT_REQUIRED},
    {.name = "start", .type = OPT_INT, .value = &start, .arg = "I", .help = "number of the first part, which is its id, too", .max = 99999999},
    {.name = "families", .type = OPT_STR, .value = &only, .arg = "LIST", .help = "only these, as in plate,bolt"},
    {.name = "exclude-families", .type = OPT_STR, .value = &excluded, .arg = "LIST", .help = "none of these"},
    {.name = "captions", .type = OPT_STR, .value = &caption_style, .arg = "STYLE", .choices = "plain|dimensions|mixed|varied",
     .help = "what the part is; that and its sizes in mm; sizes for every third part; or many wordings, mostly with sizes"},
    {.name = "sizes", .type = OPT_STR, .value = &size_kind, .arg = "KIND", .choices = "fine|even",
     .help = "even: of few values where a family's coordinates are sums of several sizes, as a small model can learn them"},
    {.name = "writer", .type = OPT_STR, .value = &writer, .arg = "KIND", .choices = "lean|opencascade",
     .help = "lean: short, children first; opencascade: as its own writer has it"},
    {.name = "read-back", .type = OPT_INT, .value = &read_back_every, .arg = "N", .help = "read every N-th file back as a stranger would (0: none)", .max = 1e9},
    {.name = "max-entities", .type = OPT_INT, .value = &max_entities, .arg = "N", .help = "remake parts of more entities; 0: any", .max = 1e9},
    {0},
};

static const struct tool_spec spec = {
    .name = "synth",
    .args = "--count N --out DIR",
    .summary = "Makes parametric parts as lean STEP files, with captions that are true of them.",
    .details = "Part I depends on the seed, I and the options alone, whatever -j is.\n\n"
               "  synth --count 1000 --seed 1 --out datasets/synth\n"
               "  synth --count 50 --families washer,nut,bolt --captions dimensions --out bolts\n",
    .options = options,
    .flags = TOOL_KEEP_DONE,
};

static int family_weight[ARRAY_LEN(families)], all_weights;

static int family_named(const char *name, size_t n)
{
    for (size_t i = 0; i < ARRAY_LEN(families); i++)
        if (strlen(families[i].name) == n && strncmp(families[i].name, name, n) == 0)
            return (int)i;
    struct buf all = BUF_INIT;
    for (size_t i = 0; i < ARRAY_LEN(families); i++)
        buf_printf(&all, "%s%s", i ? ", " : "", families[i].name);
    err_set(ERR_USAGE, "no family '%.*s'; there are: %s", (int)n, name, all.s);
    buf_release(&all);
    return ERR_USAGE;
}

/* Applies a "plate,bolt" list: sets the weights of those named to what they are by default, or to 0. */
static int apply_families(const char *list, bool include)
{
    for (const char *s = list; *s; s += *s == ',') {
        size_t n = strcspn(s, ",");
        int i = family_named(s, n);
        if (i < 0)
            return i;
        family_weight[i] = include ? families[i].weight : 0;
        s += n;
    }
    return ERR_OK;
}

static int choose_families(void)
{
    int rc = ERR_OK;
    for (size_t i = 0; i < ARRAY_LEN(families); i++)
        family_weight[i] = only ? 0 : families[i].weight;
    if (only)
        rc = apply_families(only, true);
    if (rc == ERR_OK && excluded)
        rc = apply_families(excluded, false);
    for (size_t i = 0; i < ARRAY_LEN(families); i++)
        all_weights += family_weight[i];
    if (rc == ERR_OK && all_weights == 0)
        rc = err_set(ERR_USAGE, "--families and --exclude-families leave none");
    return rc;
}

/* "a\nb\nc" as "a, b and c". */
static void enumerate(const struct buf *lines, struct buf *to)
{
    const char *last = strrchr(lines->s, '\n');
    for (const char *s = lines->s; *s; s++) {
        if (*s != '\n')
            buf_putc(to, *s);
        else
            buf_puts(to, s == last ? " and " : ", ");
    }
}

/* ---- varied captions: the same facts in many wordings ---- */

/* A size as a noun: "80 mm long" is a length of 80 mm. */
static const char *noun(const char *what)
{
    static const char *const of[][2] = {{"long", "length"}, {"wide", "width"}, {"thick", "thickness"}, {"high", "height"},
                                        {"deep", "depth"}, {"in diameter", "diameter"}};
    for (size_t i = 0; i < ARRAY_LEN(of); i++)
        if (!strcmp(what, of[i][0]))
            return of[i][1];
    return NULL;
}

/* "80 mm long\n5 mm thick" as nouns, "a length of 80 mm and ..." or "length 80 mm, ..."; false: one has no noun. */
static bool put_nouns(const struct buf *sizes, bool sentence, struct buf *to)
{
    struct buf lines = BUF_INIT;
    bool good = true;
    for (const char *s = sizes->s; *s && good; s += *s == '\n') {
        size_t n = strcspn(s, "\n"), number = strcspn(s, " ");
        char what[64];
        snprintf(what, sizeof what, "%.*s", (int)(n - number - 4), s + number + 4); /* behind " mm " */
        const char *is = noun(what);
        good = is != NULL;
        if (good)
            buf_printf(&lines, "%s%s%s %s%.*s mm", lines.n ? "\n" : "", sentence ? "a " : "", is, sentence ? "of " : "", (int)number, s);
        s += n;
    }
    if (good && sentence)
        enumerate(&lines, to);
    for (const char *s = lines.s; good && !sentence && *s; s++)
        buf_puts(to, *s == '\n' ? ", " : (char[]){*s, 0});
    buf_release(&lines);
    return good;
}

/* "80 x 40 x 5 mm", where there are three extents. */
static bool put_product(const struct gen *g, struct buf *to)
{
    if (g->n_extents != 3 || g->n_sizes != 3 || strstr(g->sizes.s, "diameter"))
        return false;
    buf_printf(to, "%g x %g x %g mm", g->extent[0], g->extent[1], g->extent[2]);
    return true;
}

/* Appends s with `from`, a whole word, as `into`. */
static void put_replaced(const char *s, const char *from, const char *into, struct buf *to)
{
    size_t n = strlen(from);
    for (bool inside = false; *s; s++) {
        bool letter = (*s >= 'a' && *s <= 'z') || (*s >= 'A' && *s <= 'Z');
        if (!inside && !strncmp(s, from, n) && !((s[n] >= 'a' && s[n] <= 'z') || s[n] == '-')) {
            buf_puts(to, into);
            s += n - 1;
            inside = true;
        } else {
            buf_putc(to, *s);
            inside = letter || *s == '-';
        }
    }
}

static void reword(struct buf *b, const char *from, const char *into)
{
    struct buf next = BUF_INIT;
    put_replaced(b->s, from, into, &next);
    buf_release(b);
    *b = next;
}

static void varied_caption(struct gen *g, struct buf *to)
{
    struct buf b = BUF_INIT;
    buf_puts(&b, g->plain.s);
    if (chance(g, 0.2)) /* six bolt holes: 6 bolt holes */
        for (int i = 2; i <= 12; i++)
            reword(&b, word(i), text(g, "%d", i));
    if (chance(g, 0.2))
        reword(&b, "circular hole", "round hole");
    if (chance(g, 0.2))
        reword(&b, "circular holes", "round holes");
    if (chance(g, 0.15))
        reword(&b, "central", "centered");
    bool bare = chance(g, 0.12); /* "rectangular block with ...": no article */
    const char *article = !strncmp(b.s, "An ", 3) ? "An " : !strncmp(b.s, "A ", 2) ? "A " : "";
    struct buf said = BUF_INIT;
    double u = unit(g);
    /* How much is told: the shape alone; its first size; its sizes; its sizes and details. */
    int level = u < 0.22 ? 0 : u < 0.27 ? 1 : u < 0.52 ? 2 : 3;
    if (!g->sizes.n)
        level = 0;
    struct buf sizes = BUF_INIT;
    buf_add(&sizes, g->sizes.s, level == 1 ? strcspn(g->sizes.s, "\n") : g->sizes.n);
    bool first = false; /* "A 80 x 40 x 5 mm flat plate" */
    const char *body = b.s + strlen(article);
    if (level >= 2 && *article && chance(g, 0.1)) {
        struct buf product = BUF_INIT;
        if ((first = put_product(g, &product)))
            buf_printf(&said, "%s %s %s", *product.s == '8' || !strncmp(product.s, "11 ", 3) || !strncmp(product.s, "18 ", 3) ? "An" : "A",
                       product.s, body);
        buf_release(&product);
    }
    if (!first)
        buf_puts(&said, bare ? body : b.s);
    if (level && !first) {
        size_t mark = said.n;
        bool done = false;
        switch (whole(g, 0, 7)) {
        case 0:
            buf_puts(&said, ". Dimensions: ");
            done = level >= 2 && put_product(g, &said);
            break;
        case 1:
            buf_puts(&said, ", ");
            done = level >= 2 && put_product(g, &said);
            break;
        case 2:
            buf_puts(&said, " with ");
            done = !strstr(b.s, " with") && put_nouns(&sizes, true, &said);
            break;
        case 3:
            buf_puts(&said, pick(g, ". It has |. The part has "));
            done = put_nouns(&sizes, true, &said);
            break;
        case 4:
            buf_puts(&said, pick(g, ": |. Size: |; "));
            done = put_nouns(&sizes, false, &said);
            break;
        default:
            break;
        }
        if (!done) {
            said.n = mark;
            said.s[mark] = 0;
            buf_puts(&said, pick(g, ", |, |. It is |. The part is "));
            enumerate(&sizes, &said);
        }
    }
    if (level == 3 && g->with.n) {
        buf_puts(&said, pick(g, ", with |, with |, and |. It has |. Details: "));
        enumerate(&g->with, &said);
    }
    if (chance(g, 0.12)) { /* 80mm */
        struct buf tight = BUF_INIT;
        for (const char *s = said.s; *s; s++)
            if (!(*s == ' ' && !strncmp(s, " mm", 3) && s > said.s && s[-1] >= '0' && s[-1] <= '9'))
                buf_putc(&tight, *s);
        buf_release(&said);
        said = tight;
    }
    u = unit(g);
    bool order = u < 0.12 && !bare;
    if (order)
        buf_puts(to, pick(g, "Create |Make |Design |Model |Draw "));
    bool low = order || (u > 0.75 && u < 0.9);
    size_t at = to->n;
    buf_puts(to, said.s);
    char *c = to->s + at;
    if (low && *c >= 'A' && *c <= 'Z' && c[1] != '-')
        *c = (char)(*c - 'A' + 'a');
    else if (!low && *c >= 'a' && *c <= 'z')
        *c = (char)(*c - 'a' + 'A');
    if (!chance(g, low ? 0.7 : 0.15))
        buf_putc(to, '.');
    buf_release(&said);
    buf_release(&sizes);
    buf_release(&b);
}

static void caption(struct gen *g, struct buf *to)
{
    if (!strcmp(caption_style, "varied")) {
        varied_caption(g, to);
        return;
    }
    buf_puts(to, g->plain.s);
    bool sizes = strcmp(caption_style, "dimensions") == 0 || (strcmp(caption_style, "mixed") == 0 && chance(g, 1.0 / 3));
    if (sizes && g->sizes.n) {
        int style = whole(g, 0, 2);
        if (style == 0) {
            buf_puts(to, ", ");
        } else {
            buf_puts(to, style == 1 ? ". It is " : ". The part is ");
        }
        enumerate(&g->sizes, to);
        if (g->with.n && chance(g, 0.7)) {
            buf_puts(to, ", with ");
            enumerate(&g->with, to);
        }
    }
    buf_putc(to, '.');
}

static size_t count_entities(const char *step)
{
    size_t n = 0;
    for (const char *s = step; (s = strstr(s, "\n#")) != NULL; s++)
        n++;
    return n;
}

struct job {
    int64_t part;
    int32_t first_attempt;
};

/* Reads the file as a stranger would: the same solid must come back. */
static int read_back(const char *id, const char *step, size_t n, const struct occ_part_info *info)
{
    struct part_request q = {.flags = PART_PROPERTIES | PART_CHECK};
    struct part p;
    int rc = occ_load(id, step, n, &q, &p);
    if (rc == ERR_OK && p.status != PART_OK)
        rc = err_set(ERR_EXTERN, "read back: %s", p.reason);
    else if (rc == ERR_OK && !(p.valid && p.n_solids == 1 && p.n_shells == 1 && p.n_closed_shells == 1))
        rc = err_set(ERR_EXTERN, "read back: not one valid, closed solid (%s)", p.invalid);
    else if (rc == ERR_OK && !(fabs(p.volume - info->volume_mm3) <= 1e-6 * info->volume_mm3))
        rc = err_set(ERR_EXTERN, "read back: volume %g instead of %g", p.volume, info->volume_mm3);
    part_release(&p);
    return rc;
}

/* What is said to be a size of the whole must be one. */
static int check_extents(const struct gen *g, const struct occ_part_info *info)
{
    for (int i = 0; i < g->n_extents; i++) {
        double off = 1e9;
        for (int k = 0; k < 3; k++)
            off = fmin(off, fabs(info->max[k] - info->min[k] - g->extent[i]));
        if (off > 1e-4)
            return err_set(ERR_EXTERN, "'%s' says a size of %g mm, the box is %g x %g x %g mm", g->plain.s, g->extent[i],
                           info->max[0] - info->min[0], info->max[1] - info->min[1], info->max[2] - info->min[2]);
    }
    return ERR_OK;
}

/* One attempt: appends the caption, a NUL and the file. */
static int attempt(struct gen *g, int64_t part, int try, struct buf *to, const struct family **family, struct occ_part_info *info)
{
    g->rng = (uint64_t)seed;
    g->rng = random_u64(&g->rng) ^ (uint64_t)part;
    g->rng = random_u64(&g->rng) ^ (uint64_t)try;
    g->n_points = g->n_loops = g->n_sizes = g->n_extents = 0;
    occ_build_clear(g->b);
    buf_clear(&g->plain);
    buf_clear(&g->sizes);
    buf_clear(&g->with);
    int w = whole(g, 0, all_weights - 1);
    size_t f = 0;
    while (w >= family_weight[f])
        w -= family_weight[f++];
    *family = &families[f];
    g->even = families[f].sums && !strcmp(size_kind, "even");
    int shape = families[f].make(g);
    int rc = occ_finish(g->b, &shape, info);
    if (rc < 0)
        return err_wrap("%s", families[f].name);
    if ((rc = check_extents(g, info)) < 0)
        return err_wrap("%s", families[f].name);
    char id[16], *step = NULL;
    size_t n;
    snprintf(id, sizeof id, "%08lld", (long long)part);
    rc = strcmp(writer, "lean") ? occ_step_text_native(g->b, shape, id, families[f].name, &step, &n)
                                : occ_step_text(g->b, shape, id, families[f].name, DECIMALS, &step, &n);
    if (rc < 0)
        return err_wrap("%s", families[f].name);
    if (max_entities && count_entities(step) > (size_t)max_entities) {
        rc = err_set(ERR_EXTERN, "%s: over %lld entities", families[f].name, (long long)max_entities);
    } else if (read_back_every && part % read_back_every == 0 && (rc = read_back(id, step, n, info)) < 0) {
        err_wrap("%s", families[f].name);
    } else {
        caption(g, to);
        buf_putc(to, 0);
        buf_add(to, step, n);
    }
    free(step);
    return rc;
}

static void put_sizes(struct jw *j, const struct buf *lines)
{
    for (const char *s = lines->n ? lines->s : ""; *s; s += *s == '\n') {
        size_t n = strcspn(s, "\n");
        jw_strn(j, s, n);
        s += n;
    }
}

/* In a worker process.  The result: a JSON line, a NUL, the caption, a NUL, the file. */
static int make_part(void *ctx, const char *bytes, size_t n, struct buf *to)
{
    static struct gen g;
    (void)ctx;
    if (!g.b) {
        g.b = occ_build_new();
        if (!g.b)
            return err_set(ERR_NOMEM, "out of memory");
        g.plain = g.sizes = g.with = BUF_INIT;
    }
    struct job job;
    if (n != sizeof job)
        return err_set(ERR_FORMAT, "a job of %zu bytes", n);
    memcpy(&job, bytes, sizeof job);
    struct buf made = BUF_INIT;
    const struct family *family;
    struct occ_part_info info;
    int rc = ERR_OK, try = job.first_attempt, end = try + MAX_ATTEMPTS;
    do {
        buf_clear(&made);
        rc = attempt(&g, job.part, try, &made, &family, &info);
    } while (rc < 0 && rc != ERR_NOMEM && ++try < end);
    if (rc == ERR_OK) {
        struct jw j = JW_INIT(to);
        jw_object(&j);
        jw_key(&j, "id");
        char id[16];
        snprintf(id, sizeof id, "%08lld", (long long)job.part);
        jw_str(&j, id);
        jw_kv_str(&j, "family", family->name);
        jw_kv_str(&j, "caption", made.s);
        jw_key(&j, "sizes"); /* all of them, whatever the caption tells */
        jw_array(&j);
        put_sizes(&j, &g.sizes);
        put_sizes(&j, &g.with);
        jw_end(&j);
        jw_key(&j, "box_mm");
        jw_array(&j);
        for (int k = 0; k < 3; k++)
            jw_real(&j, round((info.max[k] - info.min[k]) * 1e6) / 1e6);
        jw_end(&j);
        jw_kv_int(&j, "entities", (int64_t)count_entities(made.s + strlen(made.s) + 1));
        jw_kv_int(&j, "bytes", (int64_t)(made.n - strlen(made.s) - 1));
        jw_kv_real(&j, "volume_mm3", info.volume_mm3);
        jw_kv_real(&j, "area_mm2", info.area_mm2);
        jw_kv_int(&j, "faces", info.faces);
        jw_kv_int(&j, "attempts", try - job.first_attempt + 1);
        jw_end(&j);
        buf_putc(to, 0);
        buf_add(to, made.s, made.n);
    }
    buf_release(&made);
    return rc;
}

struct run {
    struct tool *t;
    char **captions; /* [count]; NULL where there is no part */
    bool *crashed;   /* [count] to be tried from other random numbers */
    bool second;     /* the round for those */
};

static void part_id(size_t index, char id[16])
{
    snprintf(id, 16, "%08lld", (long long)start + (long long)index);
}

static char *step_path(const char *id)
{
    return xasprintf("%s/steps/%s.step", out, id);
}

static int make_job(void *ctx, size_t index, struct buf *to)
{
    struct run *r = ctx;
    char id[16];
    part_id(index, id);
    if (r->second) {
        if (!r->crashed[index])
            return 1;
    } else {
        char *path = step_path(id);
        json_t *earlier = tool_item_earlier(r->t, id, NULL, path);
        const char *caption = json_string_value(json_object_get(earlier, "caption"));
        r->captions[index] = caption ? xstrdup(caption) : NULL;
        json_decref(earlier);
        free(path);
        if (caption)
            return 1;
    }
    struct job job;
    memset(&job, 0, sizeof job);
    job.part = start + (int64_t)index;
    job.first_attempt = r->second ? MAX_ATTEMPTS : 0;
    buf_add(to, &job, sizeof job);
    return 0;
}

static int take_part(void *ctx, const struct isolate_result *res)
{
    struct run *r = ctx;
    char id[16];
    part_id(res->index, id);
    struct run_item item = {.item = id, .state = "failed", .reason = res->error, .seconds = res->seconds};
    if (res->end != ISOLATE_OK && !r->second) {
        r->crashed[res->index] = true;
        return ERR_OK;
    }
    if (res->code < 0)
        return tool_item(r->t, &item);
    const char *line = res->data, *said = line + strlen(line) + 1, *step = said + strlen(said) + 1;
    char *path = step_path(id);
    int rc = file_write(path, step, res->n - (size_t)(step - res->data), false);
    if (rc == ERR_OK) {
        r->captions[res->index] = xstrdup(said);
        item.state = "done";
        item.reason = NULL;
        item.output = path;
        item.result = line;
        rc = tool_item(r->t, &item);
    }
    free(path);
    return rc;
}

static int write_captions(const struct run *r)
{
    struct buf csv = BUF_INIT;
    buf_puts(&csv, "model_id,isDescribable,description\n");
    for (size_t i = 0; i < (size_t)count; i++)
        if (r->captions[i]) {
            char id[16];
            part_id(i, id);
            const char *quote = strpbrk(r->captions[i], ",\"") ? "\"" : "";
            buf_printf(&csv, "%s,True,%s%s%s\n", id, quote, r->captions[i], quote);
        }
    char *path = path_join(out, "captions.csv");
    int rc = file_write(path, csv.s, csv.n, true);
    free(path);
    buf_release(&csv);
    return rc;
}

static int synth(struct tool *t, struct isolate *workers)
{
    struct run r = {.t = t, .captions = xcalloc((size_t)count, sizeof *r.captions), .crashed = xcalloc((size_t)count, sizeof *r.crashed)};
    struct isolate_batch batch = {.n = (size_t)count, .what = "making", .unit = "parts", .job = make_job, .done = take_part, .ctx = &r};
    int rc = isolate_run(workers, &batch);
    bool again = false;
    for (int64_t i = 0; i < count; i++)
        again |= r.crashed[i];
    if (rc == ERR_OK && again) {
        r.second = true;
        rc = isolate_run(workers, &batch);
    }
    if (rc == ERR_OK)
        rc = write_captions(&r);
    if (rc == ERR_OK)
        tool_print(t, "%zu parts in %s", t->n_done + t->n_current, out);
    for (int64_t i = 0; i < count; i++)
        free(r.captions[i]);
    free(r.captions);
    free(r.crashed);
    return rc;
}

int main(int argc, char **argv)
{
    struct tool t;
    struct isolate *workers = NULL;
    tool_start(&t, &spec, argc, argv);
    int rc = choose_families();
    if (rc == ERR_OK && start + count > 100000000)
        rc = err_set(ERR_USAGE, "--start and --count lead beyond the last id, 99999999");
    if (rc == ERR_OK)
        rc = isolate_open(&(struct isolate_opts){.workers = t.threads, .seconds = 20, .work = make_part}, &workers);
    if (rc == ERR_OK)
        rc = tool_begin(&t);
    if (rc == ERR_OK)
        rc = synth(&t, workers);
    isolate_close(workers);
    return tool_finish(&t, rc);
}
