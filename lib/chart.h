/* chart.h: line charts as SVG, to stand in a page or alone.
 *
 *     struct chart c = {.x_label = "step", .y_label = "loss", .series = s, .n = 2};
 *     chart_svg(&c, &out);
 */
#ifndef LIB_CHART_H
#define LIB_CHART_H

#include <stdbool.h>
#include <stddef.h>

#include "lib/mem.h"

struct chart_series {
    const char *name;   /* in the legend; NULL: none */
    const char *colour; /* "#2563eb" */
    const double *x, *y; /* [n], x ascending; points that are not finite are left out */
    size_t n;
    bool dots;          /* a dot at each point, for few */
    bool thin;          /* pale, behind the others */
};

struct chart {
    const char *title, *x_label, *y_label; /* NULL: none */
    int width, height;                     /* 0: 720 x 320 */
    const struct chart_series *series;
    size_t n;
};

/* Appends one <svg> element.  Long series are thinned to about two points a pixel, extremes kept.
 * Without any finite point it says so. */
void chart_svg(const struct chart *c, struct buf *out);

/* Running mean with the weight of the past `decay` at each step, corrected for its start (Kingma & Ba 2015,
 * section 3): a curve one can read through noise. */
void chart_smooth(const double *y, size_t n, double decay, double *out);

#endif
