#include "model/session.h"

#include <stdlib.h>
#include <string.h>

#include "lib/err.h"
#include "lib/files.h"
#include "lib/prompt.h"

static const char *trained(const struct session_options *o)
{
    return o->adapter ? o->adapter : o->model;
}

int session_check(const struct session_options *o, struct session *s)
{
    *s = (struct session){0};
    if (!o->model)
        return err_set(ERR_USAGE, "--model DIR is due");
    if (o->rag && !o->encoder)
        return err_set(ERR_USAGE, "--rag needs --encoder DIR");
    if (!path_is_dir(o->model))
        return err_set(ERR_IO, "%s: no such folder", o->model);
    if (o->adapter && !path_is_dir(o->adapter))
        return err_set(ERR_IO, "%s: no such folder", o->adapter);
    int rc = o->adapter ? prompt_check_base(o->adapter, o->model) : ERR_OK;
    if (rc == ERR_OK)
        rc = prompt_template_read(trained(o), &s->known, &s->retrieval);
    return rc == ERR_OK ? prompt_form_read(trained(o), &s->compact) : rc;
}

int session_check_prompt(const struct session_options *o, const struct session *s, bool retrieved, const char *who)
{
    if (!s->known || s->retrieval == retrieved)
        return ERR_OK;
    return err_set(ERR_USAGE, "%s was trained with the %s prompt, %s would get the %s one: %s", trained(o), s->retrieval ? "retrieval" : "plain",
                   who, retrieved ? "retrieval" : "plain",
                   s->retrieval ? "give --rag PAIRS --encoder DIR" : "give --no-retrieval and no --rag");
}

int session_open_library(const struct session_options *o, struct session *s)
{
    return o->rag && !s->library ? retrieval_open(o->rag, o->encoder, &s->library) : ERR_OK;
}

static int open_grammar(const struct session_options *o, struct session *s)
{
    struct grammar_opts g = {.typed = o->typed, .compact = s->compact};
    if (strcmp(o->grammar, "part21"))
        return ERR_OK;
    if (o->schema) {
        struct file_map m;
        int rc = file_map(o->schema, 1 << 28, &m);
        if (rc < 0)
            return rc;
        s->schema = schema_new();
        rc = schema_read(s->schema, o->schema, m.data, m.size);
        file_unmap(&m);
        if (rc < 0)
            return rc;
        g.schema = s->schema;
    }
    g.reference = !strcmp(o->order, "reference") || (!strcmp(o->order, "auto") && prompt_released(trained(o)));
    g.promises = g.reference || !strcmp(o->order, "parent-first");
    if (g.compact && g.promises)
        return err_set(ERR_USAGE, "--order %s: %s writes the compact form, for which the grammar knows children-first alone", o->order, trained(o));
    return grammar_new(s->tok, &g, &s->grammar);
}

/* What was out of memory is of no use to anybody; how much there is, is. */
static int no_room(const struct session_options *o, enum th_device device)
{
    size_t used, peak, left = 0;
    if (device == TH_CUDA)
        th_memory(device, &used, &peak, &left);
    return device == TH_CUDA ? err_set(ERR_NOMEM, "%s: the weights do not fit into the GPU's memory, of which %.0f MB are free: end what else is there, or take --device cpu",
                                       o->model, (double)left / 1e6) :
                               err_set(ERR_NOMEM, "%s: the weights do not fit into memory", o->model);
}

int session_open(const struct session_options *o, struct session *s)
{
    int rc = session_open_library(o, s);
    if (rc == ERR_OK)
        rc = tok_load(o->tokenizer ? o->tokenizer : o->model, &s->tok);
    if (rc == ERR_OK)
        rc = open_grammar(o, s);
    if (rc == ERR_OK)
        rc = th_device_open(o->device, &s->device);
    if (rc < 0)
        return rc;
    enum th_dtype dtype = !strcmp(o->dtype, "float32") || (!strcmp(o->dtype, "auto") && s->device == TH_CPU) ? TH_F32 : TH_BF16;
    th_set_threads(o->threads);
    if ((rc = model_load(o->model, dtype, s->device, &s->m)) < 0)
        return rc == ERR_NOMEM ? no_room(o, s->device) : rc;
    if (tok_n_ids(s->tok) > s->m->cfg.vocab)
        return err_set(ERR_FORMAT, "tokenizer and model do not fit: %d ids, %lld rows", (int)tok_n_ids(s->tok), (long long)s->m->cfg.vocab);
    s->digest = model_digest(s->m);
    if (o->adapter && (rc = lora_load(s->m, o->adapter, false, NULL)) == ERR_OK)
        s->digest = fnv1a(s->digest, &s->m->adapter_digest, sizeof s->m->adapter_digest);
    if (rc == ERR_OK && o->adapter && !o->unmerged)
        rc = lora_merge(s->m);
    return rc;
}

void session_close(struct session *s)
{
    grammar_free(s->grammar);
    schema_free(s->schema);
    model_free(s->m);
    tok_free(s->tok);
    retrieval_close(s->library);
    *s = (struct session){0};
}
