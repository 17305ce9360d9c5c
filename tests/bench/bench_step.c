/* How fast one core reads Part 21 text: every file given is held in memory and parsed (and, in the second
 * column, parsed and written again) until MIN_S seconds have gone by; the fastest round counts, since what
 * else the machine does can only slow a round down.
 *
 *     bench-step FILE-OR-FOLDER...
 */
#include <stdio.h>
#include <stdlib.h>

#include "lib/err.h"
#include "lib/files.h"
#include "lib/log.h"
#include "lib/step.h"

static const double MIN_S = 2;

static size_t parse_all(const struct file_map *maps, const struct file_list *l, struct buf *out)
{
    size_t n = 0;
    for (size_t i = 0; i < l->n; i++) {
        struct step_file *f;
        if (step_parse(l->v[i].path, maps[i].data, maps[i].size, 0, &f) < 0) {
            fprintf(stderr, "%s\n", err_text());
            exit(3);
        }
        n += f->n;
        if (out) {
            buf_clear(out);
            step_put_header(f, out);
            for (size_t k = 0; k < f->n; k++)
                step_put(f, &f->v[k], NULL, out);
        }
        step_free(f);
    }
    return n;
}

int main(int argc, char **argv)
{
    struct file_list l = {0};
    struct buf out = BUF_INIT;
    size_t bytes = 0, n = 0;
    for (int i = 1; i < argc; i++)
        if (file_list_add(&l, argv[i], STEP_SUFFIXES) < 0)
            return fprintf(stderr, "%s\n", err_text()), 3;
    struct file_map *maps = calloc(l.n ? l.n : 1, sizeof *maps);
    for (size_t i = 0; i < l.n; i++) {
        if (file_map(l.v[i].path, 0, &maps[i]) < 0)
            return fprintf(stderr, "%s\n", err_text()), 3;
        for (size_t k = 0; k < maps[i].size; k += 4096) /* no page faults in the timing */
            n += (unsigned char)maps[i].data[k];
        bytes += maps[i].size;
    }
    if (!bytes)
        return fprintf(stderr, "usage: bench-step FILE-OR-FOLDER...\n"), 2;
    double best[2] = {1e9, 1e9};
    for (int kind = 0; kind < 2; kind++) {
        double end = now_s() + MIN_S;
        do {
            double t0 = now_s();
            n = parse_all(maps, &l, kind ? &out : NULL);
            if (now_s() - t0 < best[kind])
                best[kind] = now_s() - t0;
        } while (now_s() < end);
    }
    printf("%zu files, %.1f MB, %zu instances, one core: parse %.0f MB/s (%.1f M instances/s), parse and write %.0f MB/s\n", l.n,
           (double)bytes / 1e6, n, (double)bytes / 1e6 / best[0], (double)n / 1e6 / best[0], (double)bytes / 1e6 / best[1]);
    for (size_t i = 0; i < l.n; i++)
        file_unmap(&maps[i]);
    free(maps);
    file_list_release(&l);
    buf_release(&out);
    return 0;
}
