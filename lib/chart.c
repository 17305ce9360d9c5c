#include "lib/chart.h"

#include <math.h>

#include "lib/table.h"

enum { LEFT = 62, RIGHT = 18, TOP = 30, BOTTOM = 44 };

struct frame {
    double x0, x1, y0, y1; /* data */
    double w, h;           /* of the plot, pixels */
};

static bool drawable(const struct chart_series *s, size_t i)
{
    return fabs(s->x[i]) < 1e30 && fabs(s->y[i]) < 1e30; /* false for NaN, too */
}

static double px(const struct frame *f, double x)
{
    return LEFT + (x - f->x0) / (f->x1 - f->x0) * f->w;
}

static double py(const struct frame *f, double y)
{
    return TOP + (f->y1 - y) / (f->y1 - f->y0) * f->h;
}

/* 1, 2 or 5 times a power of ten, for about n steps over the span. */
static double tick_step(double span, int n)
{
    double raw = span / n, unit = pow(10, floor(log10(raw)));
    return unit * (raw <= unit ? 1 : raw <= 2 * unit ? 2 : raw <= 5 * unit ? 5 : 10);
}

static void widen(double *lo, double *hi)
{
    if (*hi > *lo)
        return;
    double by = *lo != 0 ? fabs(*lo) / 2 : 1;
    *lo -= by;
    *hi += by;
}

static void put_axes(const struct chart *c, const struct frame *f, struct buf *out)
{
    double sx = tick_step(f->x1 - f->x0, 8), sy = tick_step(f->y1 - f->y0, 5);
    for (int i = 0; i < 24; i++) {
        double y = (ceil(f->y0 / sy) + i) * sy;
        if (y > f->y1 + 1e-9 * sy)
            break;
        buf_printf(out, "<line x1=\"%d\" x2=\"%.1f\" y1=\"%.1f\" y2=\"%.1f\" stroke=\"#e5e7eb\"/>"
                        "<text x=\"%d\" y=\"%.1f\" text-anchor=\"end\">%.6g</text>\n",
                   LEFT, LEFT + f->w, py(f, y), py(f, y), LEFT - 8, py(f, y) + 4, fabs(y) < 1e-9 * sy ? 0 : y);
    }
    for (int i = 0; i < 24; i++) {
        double x = (ceil(f->x0 / sx) + i) * sx;
        if (x > f->x1 + 1e-9 * sx)
            break;
        buf_printf(out, "<line x1=\"%.1f\" x2=\"%.1f\" y1=\"%.1f\" y2=\"%.1f\" stroke=\"#9ca3af\"/>"
                        "<text x=\"%.1f\" y=\"%.1f\" text-anchor=\"middle\">%.6g</text>\n",
                   px(f, x), px(f, x), TOP + f->h, TOP + f->h + 5, px(f, x), TOP + f->h + 18, fabs(x) < 1e-9 * sx ? 0 : x);
    }
    buf_printf(out, "<path d=\"M%d %d V%.1f H%.1f\" fill=\"none\" stroke=\"#9ca3af\"/>\n", LEFT, TOP, TOP + f->h, LEFT + f->w);
    if (c->x_label) {
        buf_printf(out, "<text x=\"%.1f\" y=\"%.1f\" text-anchor=\"middle\">", LEFT + f->w / 2, TOP + f->h + 36);
        put_markup(out, c->x_label);
        buf_puts(out, "</text>\n");
    }
    if (c->y_label) {
        buf_printf(out, "<text transform=\"translate(14 %.1f) rotate(-90)\" text-anchor=\"middle\">", TOP + f->h / 2);
        put_markup(out, c->y_label);
        buf_puts(out, "</text>\n");
    }
}

static void put_point(const struct frame *f, const struct chart_series *s, size_t i, bool *any, struct buf *out)
{
    buf_printf(out, "%c%.1f %.1f", *any ? 'L' : 'M', px(f, s->x[i]), py(f, s->y[i]));
    *any = true;
}

static void put_series(const struct frame *f, const struct chart_series *s, struct buf *out)
{
    bool any = false;
    size_t per = s->n > 2 * (size_t)f->w ? s->n / (size_t)f->w + 1 : 1; /* points drawn as their two extremes */
    buf_puts(out, "<path d=\"");
    for (size_t i = 0; i < s->n; i += per) {
        size_t lo = SIZE_MAX, hi = SIZE_MAX;
        for (size_t k = i; k < i + per && k < s->n; k++) {
            if (!drawable(s, k))
                continue;
            lo = lo == SIZE_MAX || s->y[k] < s->y[lo] ? k : lo;
            hi = hi == SIZE_MAX || s->y[k] > s->y[hi] ? k : hi;
        }
        if (lo == SIZE_MAX)
            continue;
        put_point(f, s, lo < hi ? lo : hi, &any, out);
        if (lo != hi)
            put_point(f, s, lo < hi ? hi : lo, &any, out);
    }
    buf_printf(out, "\" fill=\"none\" stroke=\"%s\" stroke-width=\"%s\" stroke-linejoin=\"round\"%s/>\n", s->colour,
               s->thin ? "1" : "2", s->thin ? " opacity=\".35\"" : "");
    for (size_t i = 0; s->dots && i < s->n; i++)
        if (drawable(s, i))
            buf_printf(out, "<circle cx=\"%.1f\" cy=\"%.1f\" r=\"3.5\" fill=\"%s\"><title>%g: %g</title></circle>\n",
                       px(f, s->x[i]), py(f, s->y[i]), s->colour, s->x[i], s->y[i]);
}

static void put_legend(const struct chart *c, const struct frame *f, struct buf *out)
{
    double x = LEFT + f->w;
    for (size_t k = c->n; k--;) {
        const struct chart_series *s = &c->series[k];
        if (!s->name || !s->n)
            continue;
        x -= 7.0 * (double)strlen(s->name) + 34;
        buf_printf(out, "<line x1=\"%.1f\" x2=\"%.1f\" y1=\"16\" y2=\"16\" stroke=\"%s\" stroke-width=\"3\"%s/><text x=\"%.1f\" y=\"20\">",
                   x, x + 18, s->colour, s->thin ? " opacity=\".35\"" : "", x + 23);
        put_markup(out, s->name);
        buf_puts(out, "</text>\n");
    }
}

void chart_svg(const struct chart *c, struct buf *out)
{
    int width = c->width ? c->width : 720, height = c->height ? c->height : 320;
    struct frame f = {INFINITY, -INFINITY, INFINITY, -INFINITY, width - LEFT - RIGHT, height - TOP - BOTTOM};
    for (size_t k = 0; k < c->n; k++)
        for (size_t i = 0; i < c->series[k].n; i++)
            if (drawable(&c->series[k], i)) {
                f.x0 = fmin(f.x0, c->series[k].x[i]);
                f.x1 = fmax(f.x1, c->series[k].x[i]);
                f.y0 = fmin(f.y0, c->series[k].y[i]);
                f.y1 = fmax(f.y1, c->series[k].y[i]);
            }
    buf_printf(out, "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 %d %d\" width=\"%d\" height=\"%d\" role=\"img\" "
                    "font-family=\"system-ui,sans-serif\" font-size=\"12\" fill=\"#374151\">\n<rect width=\"100%%\" height=\"100%%\" fill=\"#fff\"/>\n",
               width, height, width, height);
    if (c->title) {
        buf_printf(out, "<text x=\"%d\" y=\"20\" font-weight=\"600\" font-size=\"13\">", LEFT);
        put_markup(out, c->title);
        buf_puts(out, "</text>\n");
    }
    if (f.x0 > f.x1) {
        buf_printf(out, "<text x=\"%d\" y=\"%d\" text-anchor=\"middle\">nothing to draw yet</text>\n", width / 2, height / 2);
    } else {
        widen(&f.x0, &f.x1);
        widen(&f.y0, &f.y1);
        double step = tick_step(f.y1 - f.y0, 5);
        f.y0 = floor(f.y0 / step) * step;
        f.y1 = ceil(f.y1 / step) * step;
        put_axes(c, &f, out);
        for (size_t k = 0; k < c->n; k++)
            put_series(&f, &c->series[k], out);
        put_legend(c, &f, out);
    }
    buf_puts(out, "</svg>\n");
}

void chart_smooth(const double *y, size_t n, double decay, double *out)
{
    double sum = 0, weight = 0;
    for (size_t i = 0; i < n; i++) {
        if (isfinite(y[i])) {
            sum = decay * sum + (1 - decay) * y[i];
            weight = decay * weight + (1 - decay);
        }
        out[i] = weight > 0 ? sum / weight : NAN;
    }
}
