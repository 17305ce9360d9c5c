#include "lib/prompt.h"

#include <stdlib.h>

#include "lib/err.h"
#include "lib/files.h"
#include "lib/json.h"

void prompt_text(const char *caption, const char *retrieved, struct buf *out)
{
    buf_puts(out, "You are a CAD model generation assistant trained to produce STEP (.step) files based on textual "
                  "descriptions. Given the following object description");
    if (retrieved)
        buf_puts(out, " and relevant retrieved CAD data");
    buf_puts(out, ", generate a STEP file that accurately represents the described object.\n\n");
    if (retrieved)
        buf_puts(out, "\n");
    buf_puts(out, "### caption:\n");
    buf_puts(out, caption);
    if (retrieved) {
        buf_puts(out, "\n\n### retrieved relevant step file:\n");
        buf_puts(out, retrieved);
    }
    buf_puts(out, "\n\n### output:\n");
}

int prompt_encode(const struct tok *t, const char *caption, const char *retrieved, struct tok_ids *out)
{
    struct buf b = BUF_INIT;
    prompt_text(caption, retrieved, &b);
    int rc = tok_encode(t, b.s, b.n, true, out);
    buf_release(&b);
    return rc;
}

int prompt_encode_training(const struct tok *t, const char *caption, const char *retrieved, const char *output,
                           struct tok_ids *out, size_t *response)
{
    if (tok_eos(t) < 0)
        return err_set(ERR_FORMAT, "the tokenizer names no EOS token (tokenizer_config.json: eos_token)");
    struct buf b = BUF_INIT;
    prompt_text(caption, retrieved, &b);
    size_t mark = b.n;
    buf_puts(&b, output);
    int rc = tok_encode_mark(t, b.s, b.n, true, mark, out, response);
    buf_release(&b);
    if (rc == ERR_OK)
        tok_ids_add(out, tok_eos(t));
    return rc;
}

bool prompt_released(const char *dir, bool *retrieval)
{
    static const struct {
        const char *name;
        bool retrieval;
    } released[] = {{"step-llm-llama3b-no_rag", false}, {"step-llm-llama3b", true}, {"step-llm-qwen3b", true}};
    for (size_t i = 0; i < ARRAY_LEN(released); i++) {
        const char *p = strcasestr(dir, released[i].name);
        size_t n = strlen(released[i].name);
        if (p && (p == dir || strchr("/-", p[-1])) && (!p[n] || p[n] == '/')) {
            *retrieval = released[i].retrieval;
            return true;
        }
    }
    return false;
}

int prompt_template_read(const char *dir, bool *known, bool *retrieval)
{
    char *path = path_join(dir, "prompt.json");
    json_t *o = NULL;
    int rc = ERR_OK;
    bool there = path_exists(path);
    *known = there || prompt_released(dir, retrieval);
    if (there && (rc = json_read_file(path, 1 << 20, &o)) == ERR_OK) {
        const char *name = json_string_value(json_object_get(o, "template"));
        *retrieval = name && !strcmp(name, "retrieval");
        if (!name || (!*retrieval && strcmp(name, "plain")))
            rc = err_set(ERR_FORMAT, "%s: template '%s' is not known (retrieval and plain are)", path, name ? name : "none");
    }
    json_decref(o);
    free(path);
    return rc;
}

int prompt_form_read(const char *dir, bool *compact)
{
    char *path = path_join(dir, "prompt.json");
    json_t *o = NULL;
    int rc = ERR_OK;
    *compact = false;
    if (path_exists(path) && (rc = json_read_file(path, 1 << 20, &o)) == ERR_OK) {
        const char *form = json_string_value(json_object_get(o, "form"));
        *compact = form && !strcmp(form, "compact");
        if (form && !*compact && strcmp(form, "named"))
            rc = err_set(ERR_FORMAT, "%s: form '%s' is not known (named and compact are)", path, form);
    }
    json_decref(o);
    free(path);
    return rc;
}
