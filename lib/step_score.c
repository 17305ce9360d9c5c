#include "lib/step_score.h"

#include <dirent.h>
#include <stdlib.h>

#include "lib/err.h"

int score_files(struct file_list *l, const char *path)
{
    size_t before = l->n;
    int rc = file_list_add(l, path, STEP_SUFFIXES);
    if (rc == ERR_OK && l->n == before)
        return err_set(ERR_IO, "%s: holds no file that ends in .step or .stp", path);
    return rc;
}

static void push(struct file_list *l, char *path, char *rel)
{
    ARRAY_GROW(l->v, l->cap, l->n + 1);
    l->v[l->n].path = path;
    l->v[l->n++].rel = rel;
}

static int visible(const struct dirent *e)
{
    return e->d_name[0] != '.';
}

bool score_samples(struct file_list *l, struct file_list *lacking, const char *dir, const char *sub)
{
    struct dirent **samples;
    int n = scandir(dir, &samples, visible, alphasort);
    bool any = false;
    for (int i = 0; i < n; i++) {
        char *sample = path_join(dir, samples[i]->d_name), *folder = path_join(sample, sub);
        struct dirent **names;
        int n_names = path_is_dir(folder) ? scandir(folder, &names, visible, alphasort) : -1;
        any |= n_names >= 0;
        for (int k = 0; k < n_names; k++) {
            size_t len = strlen(names[k]->d_name);
            if (len >= 5 && !strcmp(names[k]->d_name + len - 5, ".step"))
                push(l, path_join(folder, names[k]->d_name), xasprintf("%s/%s/%s", samples[i]->d_name, sub, names[k]->d_name));
            free(names[k]);
        }
        if (n_names >= 0)
            free(names);
        else if (path_is_dir(sample))
            push(lacking, xstrdup(sample), xstrdup(samples[i]->d_name));
        free(sample);
        free(folder);
        free(samples[i]);
    }
    if (n >= 0)
        free(samples);
    return any;
}
