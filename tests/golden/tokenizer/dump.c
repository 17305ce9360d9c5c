/* dump TOKENIZER < texts > ids: for compare.py.
 *
 * Input and output are little-endian frames: a text is its length (u32) and its bytes; the
 * answer is the number of ids (u32), the ids (i32), the length of their decoded text
 * (u32) and that text. */
#include <stdio.h>
#include <stdlib.h>

#include "lib/err.h"
#include "lib/log.h"
#include "lib/tokenizer.h"

int main(int argc, char **argv)
{
    struct tok *t;
    if (argc != 2 || tok_load(argv[1], &t) < 0) {
        fprintf(stderr, "dump: %s\n", argc == 2 ? err_text() : "usage: dump TOKENIZER < texts > ids");
        return 3;
    }
    uint32_t n;
    double seconds = 0;
    uint64_t bytes = 0, tokens = 0;
    while (fread(&n, 4, 1, stdin) == 1) {
        char *text = xmalloc(n + 1u);
        struct tok_ids ids = {0};
        struct buf back = BUF_INIT;
        if (fread(text, 1, n, stdin) != n)
            return 3;
        double start = now_s();
        int rc = tok_encode(t, text, n, true, &ids);
        seconds += now_s() - start;
        if (rc < 0 || tok_decode(t, ids.v, ids.n, false, &back) < 0) {
            fprintf(stderr, "dump: %s\n", err_text());
            return 3;
        }
        bytes += n;
        tokens += ids.n;
        uint32_t n_ids = (uint32_t)ids.n, n_back = (uint32_t)back.n;
        fwrite(&n_ids, 4, 1, stdout);
        fwrite(ids.v, 4, ids.n, stdout);
        fwrite(&n_back, 4, 1, stdout);
        fwrite(back.s, 1, back.n, stdout);
        tok_ids_release(&ids);
        buf_release(&back);
        free(text);
    }
    fprintf(stderr, "%llu bytes, %llu tokens, %.2f MB/s\n", (unsigned long long)bytes, (unsigned long long)tokens,
            (double)bytes / 1e6 / seconds);
    tok_free(t);
    return 0;
}
