#include "lib/curvelog.h"

#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>

#include "lib/err.h"
#include "lib/files.h"
#include "lib/json.h"
#include "lib/mem.h"
#include "lib/tfevents.h"

struct curvelog {
    const char *const *names;
    size_t n;
    char *path;
    FILE *csv;
    struct tfevents *events;
};

/* The table's whole lines up to the step, under the present head. */
static int kept_lines(const char *path, int64_t resumed, struct buf *out)
{
    struct file_map f;
    if (resumed < 0 || !path_exists(path))
        return ERR_OK;
    int rc = file_map(path, 0, &f);
    if (rc < 0)
        return rc;
    for (const char *s = f.data, *end = s + f.size, *nl; s < end && (nl = memchr(s, '\n', (size_t)(end - s))); s = nl + 1) {
        char number[24] = "", *rest;
        snprintf(number, sizeof number, "%.*s", (int)(nl - s < 23 ? nl - s : 23), s);
        long long step = strtoll(number, &rest, 10);
        if (rest > number && *rest == ',' && step <= resumed)
            buf_add(out, s, (size_t)(nl - s) + 1);
    }
    file_unmap(&f);
    return rc;
}

int curvelog_open(const char *dir, const char *const *names, size_t n, int64_t resumed, struct curvelog **out)
{
    struct curvelog *l = xcalloc(1, sizeof *l);
    struct buf b = BUF_INIT;
    char *events = path_join(dir, "tensorboard");
    *out = NULL;
    *l = (struct curvelog){.names = names, .n = n, .path = path_join(dir, "metrics.csv")};
    buf_puts(&b, "step");
    for (size_t i = 0; i < n; i++)
        buf_printf(&b, ",%s", names[i]);
    buf_putc(&b, '\n');
    int rc = kept_lines(l->path, resumed, &b);
    if (rc == ERR_OK)
        rc = file_write(l->path, b.s, b.n, false);
    if (rc == ERR_OK && !(l->csv = fopen(l->path, "ab")))
        rc = err_set(ERR_IO, "%s: %s", l->path, strerror(errno));
    if (rc == ERR_OK)
        rc = tfevents_open(events, resumed, &l->events);
    free(events);
    buf_release(&b);
    if (rc == ERR_OK)
        *out = l;
    else
        curvelog_close(l);
    return rc;
}

int curvelog_row(struct curvelog *l, int64_t step, const double *values)
{
    char number[32], tag[64];
    struct buf b = BUF_INIT;
    int rc = ERR_OK;
    buf_printf(&b, "%lld", (long long)step);
    for (size_t i = 0; i < l->n; i++) {
        buf_putc(&b, ',');
        if (!isfinite(values[i]))
            continue;
        buf_puts(&b, real_repr(number, values[i]));
        snprintf(tag, sizeof tag, strncmp(l->names[i], "loss_val", 8) ? "train/%s" : "eval/%s", l->names[i]);
        if (rc == ERR_OK)
            rc = tfevents_scalar(l->events, step, tag, values[i]);
    }
    buf_putc(&b, '\n');
    if (rc == ERR_OK && (fwrite(b.s, 1, b.n, l->csv) != b.n || fflush(l->csv) != 0))
        rc = err_set(ERR_IO, "%s: %s", l->path, strerror(errno));
    buf_release(&b);
    return rc < 0 ? rc : tfevents_flush(l->events);
}

void curvelog_close(struct curvelog *l)
{
    if (!l)
        return;
    if (l->csv)
        fclose(l->csv);
    tfevents_close(l->events);
    free(l->path);
    free(l);
}
