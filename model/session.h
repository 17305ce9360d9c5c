/* session.h: what generate and serve share: a model with its tokenizer and adapter, the prompts it was trained with,
 * the library to retrieve from, the grammar.
 *
 *     struct session s;
 *     session_check(&o, &s);          // what can be told without the weights: prompt.json, the grammar's form
 *     session_open(&o, &s);           // tokenizer, weights, adapter (merged, if not told otherwise), library, grammar
 *     session_close(&s);
 */
#ifndef MODEL_SESSION_H
#define MODEL_SESSION_H

#include "lib/grammar.h"
#include "lib/opt.h"
#include "lib/tokenizer.h"
#include "model/retrieval.h"
#include "model/transformer.h"

struct session_options {
    const char *model, *adapter, *tokenizer, *rag, *encoder, *device, *dtype, *grammar, *order, *schema;
    bool typed, unmerged;
    int threads;
};
#define SESSION_DEFAULT ((struct session_options){.device = "auto", .dtype = "auto", .grammar = "off", .order = "auto"})

/* Options of both tools, on a struct session_options o. */
#define SESSION_OPTIONS(o)                                                                                                                  \
    {.name = "model", .type = OPT_STR, .value = &(o).model, .arg = "DIR", .help = "base model, a Hugging Face folder"},                     \
    {.name = "adapter", .type = OPT_STR, .value = &(o).adapter, .arg = "DIR", .help = "LoRA adapter in PEFT's layout"},                     \
    {.name = "unmerged", .type = OPT_FLAG, .value = &(o).unmerged,                                                                         \
     .help = "leave the adapter beside the weights instead of adding it to them: no rounding of sums, and slower"},                        \
    {.name = "tokenizer", .type = OPT_STR, .value = &(o).tokenizer, .arg = "DIR", .help = "tokenizer (default: the model's)"},              \
    {.name = "rag", .type = OPT_STR, .value = &(o).rag, .arg = "PAIRS", .help = "pair records to retrieve similar parts from"},             \
    {.name = "encoder", .type = OPT_STR, .value = &(o).encoder, .arg = "DIR", .help = "sentence encoder, for --rag"},                       \
    {.name = "grammar", .type = OPT_STR, .value = &(o).grammar, .choices = "off|part21", .help = "constrain the text to valid Part 21"},    \
    {.name = "order", .type = OPT_STR, .value = &(o).order, .choices = "auto|children-first|parent-first|reference",                        \
     .help = "the grammar's: order and form of the text that the model was trained on (auto: by prompt.json, or the adapter's name)"},     \
    {.name = "schema", .type = OPT_STR, .value = &(o).schema, .arg = "FILE", .help = "the grammar's table of entities (see schema-table)"}, \
    {.name = "typed-references", .type = OPT_FLAG, .value = &(o).typed,                                                                     \
     .help = "the grammar: references only to the types that the table has there"},                                                        \
    {.name = "device", .type = OPT_STR, .value = &(o).device, .choices = "auto|cpu|cuda", .help = "where to compute"},                      \
    {.name = "dtype", .type = OPT_STR, .value = &(o).dtype, .choices = "auto|float32|bfloat16",                                             \
     .help = "of weights and activations (auto: bfloat16 on CUDA)"}

struct session {
    bool known, retrieval;   /* the template that the weights were trained with, if that is known */
    bool compact;            /* they write the compact form */
    struct tok *tok;
    struct model *m;
    uint64_t digest;         /* of the weights and the adapter: what a part was made with */
    enum th_device device;
    struct retrieval *library; /* NULL without --rag */
    struct schema *schema;
    struct grammar *grammar; /* NULL: off */
};

/* ERR_USAGE: no model, or --rag without --encoder. */
int session_check(const struct session_options *o, struct session *s);
/* ERR_USAGE when a prompt with (without) a retrieved part is not what the weights know; who names the part. */
int session_check_prompt(const struct session_options *o, const struct session *s, bool retrieved, const char *who);
/* Opens the library alone (generate --retrieve-only). */
int session_open_library(const struct session_options *o, struct session *s);
int session_open(const struct session_options *o, struct session *s);
void session_close(struct session *s);

#endif
