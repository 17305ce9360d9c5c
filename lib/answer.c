#include "lib/answer.h"

#include <stdio.h>
#include <stdlib.h>

#include "lib/err.h"
#include "lib/files.h"
#include "lib/json.h"
#include "lib/sibling.h"
#include "lib/step_prep.h"

void answer_make(const char *name, const char *text, size_t n, struct answer *a)
{
    struct buf whole = BUF_INIT;
    struct step_restore_report report = {0};
    struct step_file *f = NULL;
    *a = (struct answer){.step = BUF_INIT, .checks = BUF_INIT};
    step_with_header(text, n, &whole);
    /* What cannot be restored is kept as far as it goes: the scores shall count it as what it is. */
    int rc = step_restore(name, whole.s, whole.n, &a->step, &report);
    if (rc == ERR_OK)
        rc = step_parse(name, a->step.s, a->step.n, 0, &f);
    if (rc == ERR_OK) {
        a->valid = true;
        a->entities = f->n;
        a->dangling = f->n_dangling;
        buf_printf(&a->checks, "%zu instances, valid Part 21, ", f->n);
        if (f->n_dangling)
            buf_printf(&a->checks, "%zu references to nothing", f->n_dangling);
        else
            buf_puts(&a->checks, "no reference dangles");
    } else {
        buf_printf(&a->checks, "not valid Part 21 (%s)", err_text());
    }
    if (!a->valid && !a->step.n)
        buf_add(&a->step, whole.s, whole.n);
    step_free(f);
    buf_release(&whole);
}

void answer_examine(const char *path, double seconds, struct answer *a)
{
    struct buf out = BUF_INIT;
    int code = 0;
    json_t *o = NULL;
    if (!a->valid)
        return;
    int rc = sibling_run("renderability", (const char *[]){path, "--json", "--db", "none", "-q", NULL}, seconds, &out, &code);
    char *line_end = memchr(out.s, '\n', out.n);
    if (rc == ERR_OK && line_end && json_read_mem("renderability", out.s, (size_t)(line_end - out.s), &o) == ERR_OK) {
        const char *reason = json_string_value(json_object_get(o, "reason"));
        bool good = json_is_true(json_object_get(o, "renderable"));
        a->shape = good ? ANSWER_RENDERABLE : ANSWER_NOT_RENDERABLE;
        if (good)
            buf_puts(&a->checks, "; OpenCASCADE reads a valid closed shape");
        else
            buf_printf(&a->checks, "; not a valid closed shape: %s", reason ? reason : "no reason given");
    } else {
        buf_printf(&a->checks, "; the shape was not examined (%s)", rc < 0 ? err_text() : "renderability gave no answer");
    }
    json_decref(o);
    buf_release(&out);
}

int answer_draw(const char *path, int size, double seconds, const char *png, const char *glb)
{
    char *dir = temp_dir("step-llm-draw"), pixels[16];
    int code = 0;
    if (!dir)
        return ERR_IO;
    char *stem = path_stem(path), *in = path_join(dir, stem), *shot = path_join(in, "oblique.png"), *mesh = path_join(in, "model.glb");
    snprintf(pixels, sizeof pixels, "%d", size);
    int rc = sibling_run("step-render", (const char *[]){path, "--out", dir, "--views", "1", "--size", pixels, glb ? "--glb" : "--no-glb",
                                                         "--db", "none", "-q", NULL}, seconds, NULL, &code);
    if (rc == ERR_OK && code)
        rc = err_set(ERR_FORMAT, "%s: step-render cannot draw it", path);
    if (rc == ERR_OK && png)
        rc = file_copy(shot, png, false);
    if (rc == ERR_OK && glb)
        rc = file_copy(mesh, glb, false);
    if (rc < 0) { /* the text stands, whatever removing does */
        char *text = xstrdup(err_text());
        remove_tree(dir);
        err_set(rc, "%s", text);
        free(text);
    } else {
        remove_tree(dir);
    }
    free(dir);
    free(mesh);
    free(shot);
    free(in);
    free(stem);
    return rc;
}

void answer_release(struct answer *a)
{
    buf_release(&a->step);
    buf_release(&a->checks);
}
