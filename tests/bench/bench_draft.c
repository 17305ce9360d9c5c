/* bench-draft TOKENIZER [-k N] [--no-retrieval] [--cost MS:MS] [--limit N] PAIRS.json...: how good the drafts of model/draft.c are, without a model.
 *
 * The tokens of each record's true part stand in for what a model chooses: a pass gives the tokens that the draft got right
 * and one more.  --cost A:B[:wide]: a pass over n columns takes A + B n ms; with it the draft's length is chosen as the engine does, and
 * tokens/s are what such passes and the drafting itself would give; :wide, where passes are for 1, 8, 16, 32 or 64 columns. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "lib/err.h"
#include "lib/log.h"
#include "lib/pairs.h"
#include "lib/prompt.h"
#include "model/draft.h"

/* What a byte of STEP text belongs to. */
enum kind { KEYWORD, DEFINITION, REFERENCE, NUMBER, STRING, ENUMERATION, COMMENT, PUNCTUATION, OTHER, N_KINDS };
static const char *const kind_name[N_KINDS] = {"keyword", "definition", "reference", "number", "string", "enumeration", "comment", "punctuation", "other"};

struct sums {
    int64_t files, tokens, passes, guessed, columns, of[N_KINDS], wrong[N_KINDS], none[N_KINDS], full;
    double seconds, first_s;
};

static struct draft_cost cost = {.pass = 1.9, .column = 0.025};
static int64_t most = 15, limit = 1 << 30, print_misses;
static bool no_retrieval, experience;
static struct draft *before;

static void die(const char *what)
{
    fprintf(stderr, "bench-draft: %s: %s\n", what, err_text());
    exit(3);
}

static void kinds_of(const char *s, size_t n, unsigned char *out)
{
    for (size_t i = 0; i < n;) {
        size_t from = i;
        enum kind k = PUNCTUATION;
        bool first = i == 0 || s[i - 1] == '\n';
        if (s[i] == '/' && i + 1 < n && s[i + 1] == '*') {
            k = COMMENT;
            const char *e = strstr(s + i, "*/");
            i = e ? (size_t)(e - s) + 2 : n;
        } else if (s[i] == '\'') {
            k = STRING;
            for (i++; i < n && s[i] != '\'' && s[i] != '\n'; i++)
                ;
            i += i < n;
        } else if (s[i] == '#') {
            k = first ? DEFINITION : REFERENCE;
            for (i++; i < n && strchr("-0123456789", s[i]); i++)
                ;
        } else if ((s[i] >= 'A' && s[i] <= 'Z') || (s[i] >= 'a' && s[i] <= 'z')) {
            k = KEYWORD;
            for (i++; i < n && (s[i] == '_' || s[i] == '-' || (s[i] >= '0' && s[i] <= '9') || (s[i] >= 'A' && s[i] <= 'Z')); i++)
                ;
        } else if (s[i] == '.' && i + 1 < n && s[i + 1] >= 'A' && s[i + 1] <= 'Z') {
            k = ENUMERATION;
            for (i++; i < n && s[i] != '.' && s[i] != '\n'; i++)
                ;
            i += i < n;
        } else if (strchr("-+0123456789.", s[i])) {
            k = NUMBER;
            for (i++; i < n && strchr("-+0123456789.Ee", s[i]); i++)
                ;
        } else
            i++;
        memset(out + from, (int)k, i - from);
    }
}

static void one(const struct tok *t, const struct pair *p, struct sums *sum)
{
    struct tok_ids ids = {0};
    size_t start;
    if (prompt_encode_training(t, p->caption, no_retrieval ? NULL : p->retrieved, p->output, &ids, &start) < 0)
        die("tokens");
    size_t n_text = strlen(p->output), at_byte = 0;
    unsigned char *kind = xmalloc(n_text + 1);
    kinds_of(p->output, n_text, kind);
    double t0 = now_s();
    struct draft *d = draft_new(t, before);
    for (size_t i = 0; i < start; i++)
        draft_add(d, ids.v[i]);
    sum->first_s += now_s() - t0;
    t0 = now_s();
    for (size_t at = start; at < ids.n;) {
        int32_t guess[64];
        size_t n = draft_guess(d, guess, (size_t)most, &cost), hit = 0;
        sum->guessed += (int64_t)n;
        sum->columns += draft_wide(cost.wide, (int64_t)n + 1);
        sum->passes++;
        for (;;) {
            size_t k = 0;
            bool right = hit < n && guess[hit] == ids.v[at];
            tok_bytes(t, ids.v[at], &k);
            enum kind what = at_byte < n_text ? (enum kind)kind[at_byte] : OTHER;
            sum->of[what]++;
            if (!right && hit < n)
                sum->wrong[what]++;
            else if (!right && n < (size_t)most)
                sum->none[what]++;
            else if (!right)
                sum->full++;
            if (!right && print_misses && hit < n) {
                size_t from = at_byte > 60 ? at_byte - 60 : 0;
                struct buf b = BUF_INIT;
                tok_decode(t, guess + hit, n - hit, false, &b);
                printf("%s: %.*s|%.*s| guessed |%s|\n----\n", kind_name[what], (int)(at_byte - from), p->output + from, 30, p->output + at_byte, b.s);
                buf_release(&b);
            }
            at_byte += k;
            draft_add(d, ids.v[at++]);
            if (!right || at == ids.n)
                break;
            hit++;
        }
    }
    sum->seconds += now_s() - t0;
    sum->tokens += (int64_t)(ids.n - start);
    sum->files++;
    if (experience) {
        draft_free(before);
        before = d;
    } else {
        draft_free(d);
    }
    free(kind);
    tok_ids_release(&ids);
}

static void show(const char *name, const struct sums *s)
{
    double n = (double)s->passes, ms = cost.pass * n + cost.column * (double)s->columns;
    printf("%s: %lld records, %lld tokens, %lld passes: %.2f tokens a pass, %.2f guessed; %.1f us a pass for drafting; at %.2f + %.3f n ms a pass %.0f tokens/s\n",
           name, (long long)s->files, (long long)s->tokens, (long long)s->passes, (double)s->tokens / n, (double)s->guessed / n, s->seconds * 1e6 / n,
           cost.pass, cost.column, (double)s->tokens / (ms / 1e3 + s->seconds));
    printf("  passes that ended in a   ");
    for (int k = 0; k < N_KINDS; k++)
        printf(" %s %.1f %% (unguessed %.1f; tokens %.1f)%s", kind_name[k], 100 * (double)(s->wrong[k] + s->none[k]) / n, 100 * (double)s->none[k] / n,
               100 * (double)s->of[k] / (double)s->tokens, k + 1 < N_KINDS ? "," : "");
    printf("; all right %.1f %%\n", 100 * (double)s->full / n);
    fflush(stdout);
}

int main(int argc, char **argv)
{
    struct tok *t = NULL;
    for (int i = 1; i < argc; i++) {
        if (!strcmp(argv[i], "-k") && i + 1 < argc) {
            most = atoll(argv[++i]);
            most = most < 63 ? most : 63;
        } else if (!strcmp(argv[i], "--no-retrieval"))
            no_retrieval = true;
        else if (!strcmp(argv[i], "--experience"))
            experience = true;
        else if (!strcmp(argv[i], "--misses"))
            print_misses = 1;
        else if (!strcmp(argv[i], "--limit") && i + 1 < argc)
            limit = atoll(argv[++i]);
        else if (!strcmp(argv[i], "--cost") && i + 1 < argc) {
            static const int wide[] = {1, 8, 16, 32, 64, 0};
            cost.wide = strstr(argv[++i], ":wide") ? wide : NULL;
            if (sscanf(argv[i], "%lf:%lf", &cost.pass, &cost.column) != 2)
                return fprintf(stderr, "--cost A:B[:wide] is due\n"), 2;
        } else if (!t) {
            if (tok_load(argv[i], &t) < 0)
                die("tokenizer");
        } else {
            struct pairs *r;
            struct pair p;
            struct sums s = {0};
            int rc = pairs_open(argv[i], &r);
            while (rc >= 0 && s.files < limit && (rc = pairs_next(r, &p)) > 0)
                one(t, &p, &s);
            if (rc < 0)
                die(argv[i]);
            pairs_close(r);
            draft_free(before);
            before = NULL;
            show(argv[i], &s);
        }
    }
    if (!t)
        return fprintf(stderr, "usage: bench-draft TOKENIZER [-k N] [--no-retrieval] [--cost A:B[:wide]] [--limit N] [--misses] PAIRS.json...\n"), 2;
    tok_free(t);
    return 0;
}
