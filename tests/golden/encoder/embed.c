/* The sentence encoder alone: embed ENCODER_DIR OUT.f32 [THREADS] < texts, one a line.  Writes rows of float32;
 * prints texts, seconds and texts a second. */
#include <stdio.h>
#include <stdlib.h>

#include "lib/log.h"
#include "model/encoder.h"
#include "lib/mem.h"
#include "lib/err.h"

int main(int argc, char **argv)
{
    struct encoder *e;
    char **text = NULL, *line = NULL;
    size_t n = 0, cap = 0, line_cap = 0;
    if (argc < 3)
        return fprintf(stderr, "usage: embed ENCODER_DIR OUT.f32 [THREADS] < texts\n"), 2;
    while (getline(&line, &line_cap, stdin) > 0) {
        line[strcspn(line, "\n")] = '\0';
        ARRAY_GROW(text, cap, n + 1);
        text[n++] = xstrdup(line);
    }
    double t0 = now_s();
    if (encoder_load(argv[1], &e) < 0)
        return fprintf(stderr, "embed: %s\n", err_text()), 3;
    size_t dim = (size_t)encoder_dim(e);
    float *out = xmalloc((n + 1) * dim * sizeof *out);
    encoder_set_threads(e, argc > 3 ? atoi(argv[3]) : 0);
    double t1 = now_s();
    if (encoder_embed(e, (const char *const *)text, n, out, NULL) < 0)
        return fprintf(stderr, "embed: %s\n", err_text()), 3;
    double t2 = now_s();
    FILE *f = fopen(argv[2], "wb");
    if (!f || fwrite(out, dim * sizeof *out, n, f) != n || fclose(f) != 0)
        return fprintf(stderr, "embed: %s cannot be written\n", argv[2]), 3;
    printf("%zu texts, load %.3f s, embed %.3f s, %.0f texts/s\n", n, t1 - t0, t2 - t1, (double)n / (t2 - t1));
    encoder_free(e);
    return 0;
}
