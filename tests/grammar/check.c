/* grammar-check: --grammar part21 at length.
 *
 *   grammar-check accept TOKENIZER FORM FILE...            every token of restructured files is permitted
 *   grammar-check random TOKENIZER FORM N BUDGET [SEED]    N texts of random permitted tokens are valid
 *   grammar-check speed  TOKENIZER FORM FILE...            microseconds a token
 *
 * FORM: children, children-typed, compact, compact-typed, parent, reference
 */
#include "lib/log.h"
#include "tests/grammar/walks.h"

static struct walk k;

static int die(const char *what)
{
    fprintf(stderr, "%s: %s\n", what, err_text());
    exit(3);
}

static void speed(int n, char **files)
{
    uint32_t *w = xcalloc(k.n_words, sizeof *w);
    double fill[2] = {0}, permit[2] = {0};
    size_t tokens = 0;
    for (int round = 0; round < 2; round++) {
        tokens = 0;
        for (int i = 0; i < n; i++) {
            struct file_map m;
            const char *part;
            size_t size;
            struct tok_ids ids = {0};
            struct grammar_state *s;
            if (file_map(files[i], 0, &m) < 0 || !step_data_part(m.data, m.size, &part, &size) ||
                tok_encode(k.t, part, size, false, &ids) < 0 || grammar_state_new(k.g, 1000000, &s) < 0)
                die(files[i]);
            for (size_t at = 0; at < ids.n; at++) {
                double t0 = now_s();
                grammar_fill(s, w, k.n_words);
                double t1 = now_s();
                if (!grammar_permits(s, ids.v[at]) || !grammar_accept(s, ids.v[at]))
                    break;
                permit[round] += now_s() - t1;
                fill[round] += t1 - t0;
                tokens++;
            }
            grammar_state_free(s);
            tok_ids_release(&ids);
            file_unmap(&m);
        }
    }
    printf("%zu tokens: a mask %.2f us (first time %.2f), permits and accept %.2f us\n", tokens, fill[1] / (double)tokens * 1e6,
           fill[0] / (double)tokens * 1e6, permit[1] / (double)tokens * 1e6);
    free(w);
}

int main(int argc, char **argv)
{
    if (argc < 5) {
        fprintf(stderr, "usage: grammar-check accept|random|speed TOKENIZER FORM ...\n");
        return 2;
    }
    double t0 = now_s();
    int bad = 0;
    if (walk_open(&k, argv[2], argv[3]) < 0)
        die(argv[2]);
    if (!strcmp(argv[1], "accept")) {
        for (int i = 4; i < argc; i++) {
            struct file_map m;
            int rc = file_map(argv[i], 0, &m);
            if (rc < 0 || (rc = walk_text(&k, argv[i], m.data, m.size, i % 10 == 0)) < 0)
                die(argv[i]);
            bad += rc;
            file_unmap(&m);
        }
        printf("%s %s: %d files, %d refused\n", argv[2], argv[3], argc - 4, bad);
    } else if (!strcmp(argv[1], "speed")) {
        printf("tokenizer and grammar made in %.0f ms\n", (now_s() - t0) * 1e3);
        speed(argc - 4, argv + 4);
    } else {
        int n = atoi(argv[4]), i = 0;
        int64_t budget = argc > 5 ? atoll(argv[5]) : 400;
        k.rng = argc > 6 ? (uint64_t)atoll(argv[6]) : 1;
        for (; i < n && bad < 3; i++) {
            int rc = walk_random(&k, budget);
            if (rc < 0)
                die(argv[2]);
            bad += rc;
        }
        printf("%s %s: %d random texts within %lld tokens, %d bad; %.1f instances, %.0f tokens on average\n", argv[2], argv[3], i,
               (long long)budget, bad, (double)k.entities / i, (double)k.tokens / i);
    }
    walk_close(&k);
    return bad != 0;
}
