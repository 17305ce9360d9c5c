#include "lib/prompt.h"

#include <stdlib.h>
#include <string.h>

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

/* ---- the adapters that the original's authors released ---- */

static const struct prompt_release RELEASED[] = {
    {"JasonShiii/step-llm-llama3b-no_rag", "meta-llama/Llama-3.2-3B-Instruct", false},
    {"JasonShiii/step-llm-llama3b", "meta-llama/Llama-3.2-3B-Instruct", true},
    {"JasonShiii/step-llm-qwen3b", "Qwen/Qwen2.5-3B", true},
};

const struct prompt_release *prompt_release_of(const char *repo)
{
    for (size_t i = 0; i < ARRAY_LEN(RELEASED); i++)
        if (!strcasecmp(repo, RELEASED[i].repo))
            return &RELEASED[i];
    return NULL;
}

/* A text of a folder's JSON file, which the caller frees; NULL when it is not there. */
static char *note_of(const char *dir, const char *name, const char *key)
{
    char *path = path_join(dir, name), *found = NULL;
    json_t *o = NULL;
    if (path_exists(path) && json_read_file(path, 64 << 20, &o) == ERR_OK) {
        const char *text = json_string_value(json_object_get(o, key));
        found = text ? xstrdup(text) : NULL;
    }
    json_decref(o);
    free(path);
    return found;
}

/* Where a folder's content is from: hub-fetch notes it, and merge-lora beside what it merged. */
static const struct prompt_release *noted(const char *dir)
{
    static const char *const files[][2] = {{".hub.json", "repo"}, {"prompt.json", "release"}};
    const struct prompt_release *r = NULL;
    for (size_t i = 0; i < ARRAY_LEN(files) && !r; i++) {
        char *repo = note_of(dir, files[i][0], files[i][1]);
        r = repo ? prompt_release_of(repo) : NULL;
        free(repo);
    }
    return r;
}

const struct prompt_release *prompt_released(const char *dir)
{
    const struct prompt_release *r = noted(dir);
    for (size_t i = 0; i < ARRAY_LEN(RELEASED) && !r; i++) {
        const char *name = path_basename(RELEASED[i].repo), *p = strcasestr(dir, name);
        size_t n = strlen(name);
        if (p && (p == dir || strchr("/-", p[-1])) && (!p[n] || p[n] == '/'))
            r = &RELEASED[i];
    }
    return r;
}

int prompt_check_base(const char *adapter, const char *model)
{
    const struct prompt_release *r = prompt_released(adapter);
    char *repo = note_of(model, ".hub.json", "repo");
    int rc = ERR_OK;
    /* By its name alone: the same weights are published by several owners. */
    if (r && repo && strcasecmp(path_basename(repo), path_basename(r->base)))
        rc = err_set(ERR_USAGE, "%s was trained on %s, and %s is %s", adapter, r->base, model, repo);
    free(repo);
    return rc;
}

int prompt_template_read(const char *dir, bool *known, bool *retrieval)
{
    char *path = path_join(dir, "prompt.json");
    json_t *o = NULL;
    int rc = ERR_OK;
    bool there = path_exists(path);
    const struct prompt_release *release = there ? NULL : prompt_released(dir);
    *known = there || release;
    *retrieval = release && release->retrieval;
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
