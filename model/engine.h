/* engine.h: decoding many sequences at once, as fast as the machine allows.
 *
 *     struct engine *e;
 *     engine_new(model, &(struct engine_options){.max_batch = 32, .max_tokens = 16384}, &e);
 *     engine_submit(e, &(struct engine_request){.prompt = ids, .n_prompt = n, .max_new = 14000,
 *                                               .token = on_token, .done = on_done, .ctx = row}, NULL);
 *     while ((rc = engine_step(e)) > 0)       // callbacks run in here
 *         ;
 *     engine_free(e);
 *
 * Sequences wait in a queue until a place and memory for their keys and values are free, are read (prefill) and join
 * the others in mid-flight (continuous batching); what a sequence gives depends on nothing but its own request: not
 * on the batch, on drafts, or on where in memory it lies, to the bit, on one device at one precision.
 *
 * Three ways to compute, chosen by what is there:
 *   - CUDA, compute capability 9.0, bfloat16 or --weights fp8, no adapter but merged ones: kernels/decode.cu, a step is a graph of small kernels
 *   - the CPU: model/engine_cpu.c, products of rows by vectors on all threads
 *   - anything else: model_prefill() and model_decode() of transformer.h
 *
 * An engine is used by one thread at a time; callbacks run on it.
 */
#ifndef MODEL_ENGINE_H
#define MODEL_ENGINE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "lib/token_mask.h"
#include "lib/tokenizer.h"
#include "model/transformer.h"

struct engine;

struct engine_options {
    int64_t max_batch;       /* sequences decoded together; 0: 1 */
    int64_t max_tokens;      /* longest prompt and continuation together; 0: the model's context */
    int64_t vocab;           /* ids below it may be chosen (a model may have more rows than there are tokens); 0: all */
    const struct tok *tok;   /* for drafts; NULL: they know nothing of numbers */
    bool fp8;                /* weights in e4m3 with a scale a row (CUDA) */
    bool plain;              /* the third way in any case: what tests compare with */
    int many;                /* 1, 2: few columns are treated as many are, those of one sequence too (tests: it changes nothing) */
    bool emulate;            /* the first way, on the CPU, with a library of emulated kernels (tests) */
    size_t cache_bytes;      /* for keys and values; 0: what max_batch and max_tokens ask for, within what is free */
    int threads;             /* CPU; 0: all cores */
};

struct engine_sampling {
    double temperature;      /* 0: greedy */
    double top_p;            /* 0 or 1: all */
    int64_t top_k;           /* 0: all */
    uint64_t seed;           /* with the place in the sequence it decides each choice */
};

enum engine_finish { ENGINE_STOP, ENGINE_LENGTH, ENGINE_CANCELLED,
                     ENGINE_NOT_FINITE /* no token could be chosen: the model's logits are NaN or infinite */ };
/* What to say of the last. */
#define ENGINE_NOT_FINITE_WHY "not_finite: the model's scores are NaN or infinite: its weights are damaged, or overflow at this --dtype"

struct engine_result {
    enum engine_finish finish;
    int64_t tokens;          /* given to token() */
    int64_t steps;           /* forward passes after the prompt: fewer than tokens when drafts hit */
    int64_t drafted, accepted;
    int64_t changed;         /* tokens that were not the model's own choice, for the mask */
    double wait_s, prefill_s, decode_s;
};

struct engine_request {
    const int32_t *prompt;   /* copied */
    size_t n_prompt;
    int64_t max_new;
    struct engine_sampling sampling;
    int64_t draft;           /* up to so many tokens a step guessed from prompt and own text, and verified; the
                              * output is the same without; 0: none */
    const struct token_mask *mask; /* NULL: none; lives until done().  The model chooses first, the mask decides
                              * among the rest only when that is not allowed */
    /* Each token as it comes; false ends the sequence (ENGINE_STOP): that is how stop tokens and texts work. */
    bool (*token)(void *ctx, int32_t id);
    void (*done)(void *ctx, const struct engine_result *r); /* may submit the next */
    void *ctx;
};

/* m outlives the engine.  Adapters that are not merged (lora_merge()) are applied beside the weights: by the CPU's way and
 * by ATen's operators, which then also take the place of the CUDA kernels.  ERR_NOMEM says what to lower; ERR_USAGE: fp8 and adapters. */
int engine_new(struct model *m, const struct engine_options *o, struct engine **out);
void engine_free(struct engine *e); /* NULL is fine; done() is not called for what is in flight */
/* ERR_USAGE: an empty prompt, or no room for a single token after it; ERR_FORMAT: ids outside the model. */
int engine_submit(struct engine *e, const struct engine_request *r, int64_t *handle);
void engine_cancel(struct engine *e, int64_t handle); /* done() is called at the next step */
/* Admits what fits and takes every sequence one step on.  1: there is more to do; 0: idle; negative: an error,
 * after which the engine can only be freed. */
int engine_step(struct engine *e);

/* Rounds the weights of all products to what e4m3 with a scale a row (a power of two) can hold, in place: what
 * options.fp8 computes with, so that its loss can be measured.  A tied head becomes one of its own. */
int engine_round_fp8(struct model *m);

struct engine_info {
    const char *way;         /* "cuda-graph", "cpu", "aten" */
    size_t weight_bytes, cache_bytes;
    int64_t max_batch, max_tokens;
    int64_t active, waiting;
};
void engine_info(const struct engine *e, struct engine_info *out);

#endif
