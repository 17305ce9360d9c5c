/* walks.h: texts through a grammar: true ones, which it must permit, and random ones, which must be valid.
 * Used by grammar-check and by the unit test. */
#ifndef TESTS_GRAMMAR_WALKS_H
#define TESTS_GRAMMAR_WALKS_H

#include <stdio.h>
#include <stdlib.h>

#include "lib/err.h"
#include "lib/files.h"
#include "lib/grammar.h"
#include "lib/step_prep.h"

/* What a walk is in: one grammar of one tokenizer. */
struct walk {
    struct tok *t;
    struct grammar *g;
    struct grammar_opts opts;
    size_t n_words;
    uint64_t rng;
    size_t entities, tokens;
};

static inline int walk_open(struct walk *k, const char *tokenizer, const char *form)
{
    *k = (struct walk){.rng = 1};
    k->opts.promises = !strcmp(form, "parent") || !strcmp(form, "reference");
    k->opts.reference = !strcmp(form, "reference");
    k->opts.compact = !strncmp(form, "compact", 7);
    k->opts.typed = strstr(form, "-typed") != NULL;
    int rc = tok_load(tokenizer, &k->t);
    if (rc == ERR_OK && (rc = grammar_new(k->t, &k->opts, &k->g)) == ERR_OK)
        k->n_words = grammar_words(k->g);
    return rc;
}

static inline void walk_close(struct walk *k)
{
    grammar_free(k->g);
    tok_free(k->t);
}

static inline bool has_bit(const uint32_t *w, int32_t id)
{
    return w[id / 32] >> (id % 32) & 1;
}

/* Every token of the text's data section is permitted, with what closing takes to spare.  check_masks: the mask says
 * the same as permits().  1: refused, and said why on stdout; negative: an error. */
static inline int walk_text(struct walk *k, const char *name, const char *text, size_t text_n, bool check_masks)
{
    const char *part;
    size_t n;
    struct tok_ids ids = {0};
    struct grammar_state *s = NULL;
    struct buf seen = BUF_INIT;
    if (!step_data_part(text, text_n, &part, &n))
        return err_set(ERR_FORMAT, "%s: no data section", name);
    int rc = tok_encode(k->t, part, n, false, &ids);
    /* The reference form refers to instances that it has dropped, far behind its end. */
    if (rc == ERR_OK)
        rc = grammar_state_new(k->g, (int64_t)ids.n * (k->opts.reference ? 4 : 1) + 400, &s);
    uint32_t *w = xcalloc(k->n_words, sizeof *w);
    for (size_t i = 0; i < ids.n && rc == ERR_OK; i++) {
        bool good = grammar_permits(s, ids.v[i]);
        tok_decode(k->t, &ids.v[i], 1, true, &seen);
        if (check_masks) {
            memset(w, 0, k->n_words * sizeof *w);
            grammar_fill(s, w, k->n_words);
            if (has_bit(w, ids.v[i]) != good) {
                printf("%s: mask and permits() differ at token %zu\n", name, i);
                rc = 1;
            }
        }
        if (!good || !grammar_accept(s, ids.v[i])) {
            size_t from = seen.n > 90 ? seen.n - 90 : 0;
            printf("%s: token %zu of %zu refused, %s is awaited, left %lld need %lld: ...%s\n", name, i, ids.n, grammar_awaits(s),
                   (long long)grammar_left(s), (long long)grammar_need(s), seen.s + from);
            rc = 1;
        }
    }
    if (rc == ERR_OK && !grammar_done(s)) {
        printf("%s: not at its end\n", name);
        rc = 1;
    }
    free(w);
    buf_release(&seen);
    grammar_state_free(s);
    tok_ids_release(&ids);
    return rc;
}

static inline uint32_t below(struct walk *k, uint32_t n)
{
    uint64_t z = (k->rng += 0x9e3779b97f4a7c15u);
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return (uint32_t)(((z ^ (z >> 31)) >> 32) * n >> 32);
}

/* One at random of the permitted tokens; -1: none is. */
static inline int32_t pick(struct walk *k, const uint32_t *w)
{
    uint32_t n = 0, at;
    for (size_t i = 0; i < k->n_words; i++)
        n += (uint32_t)__builtin_popcount(w[i]);
    if (!n)
        return -1;
    at = below(k, n);
    for (size_t i = 0; i < k->n_words; i++) {
        uint32_t c = (uint32_t)__builtin_popcount(w[i]);
        if (at >= c) {
            at -= c;
            continue;
        }
        for (uint32_t v = w[i];; v &= v - 1)
            if (!at--)
                return (int32_t)(i * 32 + (uint32_t)__builtin_ctz(v));
    }
    return -1;
}

/* Strings and comments would take the whole budget of random texts: often this ends them. */
static inline int32_t closing(struct walk *k, const uint32_t *w)
{
    static const char *const ends[] = {"'", "','", "',", "')", "',(", "',#", "*/", "*"};
    int32_t id = tok_find(k->t, ends[below(k, ARRAY_LEN(ends))]);
    return id >= 0 && has_bit(w, id) ? id : -1;
}

/* ENDSEC is one of few choices ahead of a line, and the reference form has room for white space and comments
 * everywhere: both are seldom taken, so that there is a text. */
static inline bool idle(struct walk *k, const struct grammar_state *s, int32_t id)
{
    size_t n;
    const char *p = tok_bytes(k->t, id, &n);
    bool inside = !strcmp(grammar_awaits(s), "a string") || !strcmp(grammar_awaits(s), "a comment");
    if (n && !inside && k->opts.reference && (*p <= ' ' || *p == '/'))
        return below(k, 12);
    return !strncmp(grammar_awaits(s), "an instance", 11) && n && *p == 'E' && below(k, 60);
}

/* A text of random permitted tokens: it ends within the budget, restores to a valid file in which no reference
 * dangles, and mask and permits() agree on the way.  1: not so, and said why on stdout. */
static inline int walk_random(struct walk *k, int64_t budget)
{
    struct grammar_state *s;
    struct buf text = BUF_INIT, whole = BUF_INIT, valid = BUF_INIT;
    struct tok_stream stream = {0};
    struct step_restore_report report = {0};
    struct step_file *f = NULL;
    int64_t n = 0;
    int bad = 0, rc = grammar_state_new(k->g, budget, &s);
    if (rc < 0)
        return rc;
    uint32_t *w = xcalloc(k->n_words, sizeof *w);
    while (!grammar_done(s) && !bad) {
        memset(w, 0, k->n_words * sizeof *w);
        grammar_fill(s, w, k->n_words);
        int32_t id = below(k, 4) ? closing(k, w) : -1;
        for (int tries = 0; id < 0 || (tries < 20 && idle(k, s, id)); tries++)
            if ((id = pick(k, w)) < 0)
                break;
        for (int i = 0; i < 4 && !bad; i++) {
            int32_t other = (int32_t)below(k, (uint32_t)tok_n_ids(k->t));
            if ((bad = grammar_permits(s, other) != has_bit(w, other)))
                printf("token %lld: mask and permits() differ on %d; %s is awaited, left %lld need %lld\n", (long long)n, other,
                       grammar_awaits(s), (long long)grammar_left(s), (long long)grammar_need(s));
        }
        if (!bad && (id < 0 || !grammar_permits(s, id) || !grammar_accept(s, id))) {
            printf("token %lld: %s; %s is awaited, left %lld need %lld\n", (long long)n,
                   id < 0 ? "none is permitted" : "mask and permits() differ", grammar_awaits(s), (long long)grammar_left(s),
                   (long long)grammar_need(s));
            bad = 1;
        }
        if (!bad)
            tok_stream_push(k->t, &stream, id, true, &text);
        if (++n > budget) {
            printf("over the budget\n");
            bad = 1;
        }
    }
    tok_stream_end(&stream, &text);
    step_with_header(text.s, text.n, &whole);
    if (!bad && !k->opts.reference && !k->opts.compact && step_parse("random", whole.s, whole.n, 0, &f) < 0) {
        printf("not valid: %s\n", err_text());
        bad = 1;
    }
    step_free(f);
    f = NULL;
    if (!bad && step_restore("random", whole.s, whole.n, &valid, &report) < 0) {
        printf("not restored: %s\n", err_text());
        bad = 1;
    }
    if (!bad && (step_parse("restored", valid.s, valid.n, 0, &f) < 0 || f->n_dangling || f->n != grammar_entities(s))) {
        printf("restored, not valid: %s; %zu dangle; %zu instances, %llu counted\n", err_text(), f ? f->n_dangling : 0, f ? f->n : 0,
               (unsigned long long)grammar_entities(s));
        bad = 1;
    }
    k->entities += f ? f->n : 0;
    k->tokens += (size_t)n;
    if (bad)
        printf("%s\n", text.s);
    step_free(f);
    free(w);
    buf_release(&text);
    buf_release(&whole);
    buf_release(&valid);
    grammar_state_free(s);
    return bad;
}

#endif
