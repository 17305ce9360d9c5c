/* caption: describes parts from their pictures, with any model behind an OpenAI-compatible
 * chat API, and writes the captions CSV (model_id,isDescribable,description).
 *
 * The pictures of a part are either a folder's (PART/front.png, PART/view_3.png) or share a name
 * up to the view's (PART_front.png).  Answers are kept in the run database as they come, so
 * that a second start asks only for what is missing; the CSV is written at the end. */
#include <ctype.h>
#include <openssl/evp.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <strings.h>
#include <unistd.h>

#include "lib/csv.h"
#include "lib/http.h"
#include "lib/tool.h"

enum { MAX_IMAGE = 20 << 20, MAX_ANSWER = 4 << 20, MAX_DESCRIPTION = 4000, ASKS = 2 };

static const char *images_dir, *out_path, *endpoint, *model, *key_env = "OPENAI_API_KEY", *prompt_path;
static int64_t max_views = 9, max_tokens = 400;
static double rate, timeout_s = 300, temperature, backoff_s = 1;

static struct opt options[] = {
    {.name = "images", .type = OPT_STR, .value = &images_dir, .arg = "DIR", .flags = OPT_REQUIRED,
     .help = "pictures, as step-render makes them"},
    {.name = "out", .type = OPT_STR, .value = &out_path, .arg = "CSV", .flags = OPT_REQUIRED, .help = "file to write"},
    {.name = "endpoint", .type = OPT_STR, .value = &endpoint, .arg = "URL", .flags = OPT_REQUIRED,
     .help = "of the API, as http://localhost:8000/v1"},
    {.name = "model", .type = OPT_STR, .value = &model, .arg = "NAME", .flags = OPT_REQUIRED, .help = "model to ask for"},
    {.name = "key-env", .type = OPT_STR, .value = &key_env, .arg = "NAME", .flags = OPT_NO_KEY,
     .help = "environment variable that holds the API key, if one is needed"},
    {.name = "prompt", .type = OPT_STR, .value = &prompt_path, .arg = "FILE", .help = "instructions in place of the built-in ones"},
    {.name = "max-views", .type = OPT_INT, .value = &max_views, .arg = "N", .min = 1, .max = 100, .help = "pictures sent of a part"},
    {.name = "max-tokens", .type = OPT_INT, .value = &max_tokens, .arg = "N", .min = 1, .max = 1e6, .help = "of an answer"},
    {.name = "temperature", .type = OPT_REAL, .value = &temperature, .arg = "T", .min = 0, .max = 10, .help = "of the sampling"},
    {.name = "rate", .type = OPT_REAL, .value = &rate, .arg = "N", .flags = OPT_NO_KEY, .min = 0, .max = 1e6,
     .help = "requests a minute at most (0: as fast as -j allows)"},
    {.name = "timeout", .type = OPT_REAL, .value = &timeout_s, .arg = "SECONDS", .flags = OPT_NO_KEY, .min = 1, .max = 86400,
     .help = "how long a silent server is waited for"},
    {.name = "backoff", .type = OPT_REAL, .value = &backoff_s, .arg = "SECONDS", .flags = OPT_NO_KEY, .min = 0.001,
     .max = 3600, .help = "wait before a second try; doubles from there"},
    {0},
};

static const struct tool_spec spec = {
    .name = "caption",
    .args = "--images DIR --out CSV --endpoint URL --model NAME",
    .summary = "Writes captions of parts from their pictures, with a model behind an OpenAI-compatible API.",
    .details = "A part's id is the 8 digits its name begins with, as in the ABC dataset, else its name.  -j is the number\n"
               "of requests under way at once.\n"
               "\n"
               "  caption --images renders --out captions.csv --endpoint http://localhost:8000/v1 --model qwen-vl -j 8\n",
    .options = options,
    .flags = TOOL_KEEP_DONE | TOOL_SHARDS,
};

static const char PROMPT[] =
    "The pictures show one mechanical part from several sides. Describe its shape in one sentence for someone who "
    "is to model it in CAD: the basic body first, then holes, slots, bosses, fillets and chamfers with their number "
    "and place. Name the kind of part if it is plain to see (bracket, flange, bushing, ...). Say nothing of colour, "
    "material, background or the pictures themselves. If the shape is too intricate or too unclear to be described "
    "so, it is not describable. Answer with JSON alone: "
    "{\"isDescribable\": true or false, \"description\": \"the sentence, or empty\"}";

struct part {
    char *name; /* the folder, or the pictures' common name; unique */
    char *id;
    size_t *views; /* into the file list */
    size_t n;
    char *caption; /* the answer: JSON {"model_id":...}; NULL: none */
};

struct captioning {
    struct tool *tool;
    struct file_list files;
    struct part *v;
    size_t n, cap;
    const char *key;
    char *url;
    struct buf prompt;
    struct http **http;   /* one a worker */
    pthread_mutex_t lock; /* next_start */
    double next_start;
    atomic_bool refused; /* by the API as such: the other parts would fare no better */
};

/* ---- which pictures are of which part ---- */

static bool is_view_word(const char *s, size_t n)
{
    static const char *const words[] = {"oblique", "iso", "isometric", "front", "back",  "rear", "left",  "right",
                                        "top",     "bottom", "behind",  "below", "above", "view", "sheet", "contact"};
    if (n && n <= 3 && strspn(s, "0123456789") >= n)
        return true;
    if (n > 4 && !strncasecmp(s, "view", 4) && strspn(s + 4, "0123456789") >= n - 4)
        return true;
    for (size_t i = 0; i < ARRAY_LEN(words); i++)
        if (strlen(words[i]) == n && !strncasecmp(s, words[i], n))
            return true;
    return false;
}

/* Length of stem less the words that name a view: "plate_view_3" -> 5, "front" -> 0. */
static size_t part_length(const char *stem)
{
    size_t n = strlen(stem);
    bool number_taken = false;
    for (;;) {
        size_t start = n;
        while (start && !strchr("_-. ", stem[start - 1]))
            start--;
        bool number = start < n && isdigit((unsigned char)stem[start]);
        if (!is_view_word(stem + start, n - start) || (number && number_taken))
            return n;
        number_taken |= number;
        if (!start)
            return 0;
        n = start - 1;
    }
}

static bool is_sheet(const char *path)
{
    const char *base = path_basename(path);
    return strcasestr(base, "sheet") || strcasestr(base, "contact");
}

/* A picture and the part it is of. */
struct picture {
    char *part;
    size_t file;
};

static char *part_of(const char *rel)
{
    char *stem = path_stem(rel), *dir = path_dirname(rel), *name;
    size_t n = part_length(stem);
    bool top = !strcmp(dir, ".");
    if (!n && !top)
        name = xstrdup(dir);
    else
        name = xasprintf("%s%s%.*s", top ? "" : dir, top ? "" : "/", (int)(n ? n : strlen(stem)), stem);
    free(stem);
    free(dir);
    return name;
}

static int by_part(const void *a, const void *b)
{
    const struct picture *x = a, *y = b;
    int order = strcmp(x->part, y->part);
    return order ? order : x->file < y->file ? -1 : x->file > y->file;
}

static void add_part(struct captioning *c, const struct picture *v, size_t n)
{
    const char *base = path_basename(v[0].part);
    bool abc = strspn(base, "0123456789") == 8 && (!base[8] || base[8] == '_');
    struct part p = {.name = xstrdup(v[0].part), .id = xstrndup(base, abc ? 8 : strlen(base)),
                     .views = xmalloc(n * sizeof *p.views)};
    for (size_t i = 0; i < n; i++)
        if (!is_sheet(c->files.v[v[i].file].rel) && (int64_t)p.n < max_views)
            p.views[p.n++] = v[i].file;
    if (!p.n) /* contact sheets only where there is nothing else */
        p.views[p.n++] = v[0].file;
    ARRAY_GROW(c->v, c->cap, c->n + 1);
    c->v[c->n++] = p;
}

static void part_release(struct part *p)
{
    free(p->name);
    free(p->id);
    free(p->views);
    free(p->caption);
}

/* Makes the parts, by name; of those, the shard's. */
static void group(struct captioning *c)
{
    size_t n = c->files.n, i_part = 0;
    struct picture *v = xmalloc(n * sizeof *v);
    for (size_t i = 0; i < n; i++)
        v[i] = (struct picture){part_of(c->files.v[i].rel), i};
    qsort(v, n, sizeof *v, by_part);
    for (size_t i = 0, k; i < n; i = k) {
        for (k = i + 1; k < n && !strcmp(v[i].part, v[k].part); k++)
            ;
        if (i_part++ % (size_t)c->tool->shard_n == (size_t)c->tool->shard_i - 1)
            add_part(c, v + i, k - i);
    }
    for (size_t i = 0; i < n; i++)
        free(v[i].part);
    free(v);
}

/* ---- asking ---- */

static int add_image(struct buf *b, const char *path)
{
    struct file_map m;
    int rc = file_map(path, MAX_IMAGE, &m);
    if (rc < 0)
        return rc;
    const char *type = m.size > 8 && !memcmp(m.data, "\x89PNG\r\n\x1a\n", 8)                            ? "png"
                       : m.size > 3 && !memcmp(m.data, "\xff\xd8\xff", 3)                               ? "jpeg"
                       : m.size > 12 && !memcmp(m.data, "RIFF", 4) && !memcmp(m.data + 8, "WEBP", 4) ? "webp"
                                                                                                        : NULL;
    if (!type) {
        rc = err_set(ERR_FORMAT, "%s: neither PNG, JPEG nor WebP", path);
    } else {
        buf_printf(b, "data:image/%s;base64,", type);
        buf_grow(b, (m.size + 2) / 3 * 4);
        b->n += (size_t)EVP_EncodeBlock((unsigned char *)b->s + b->n, (const unsigned char *)m.data, (int)m.size);
    }
    file_unmap(&m);
    return rc;
}

static int build_request(const struct captioning *c, const struct part *p, struct buf *out)
{
    struct jw w = JW_INIT(out);
    struct buf image = BUF_INIT;
    int rc = ERR_OK;
    jw_object(&w);
    jw_kv_str(&w, "model", model);
    jw_kv_real(&w, "temperature", temperature);
    jw_kv_int(&w, "max_tokens", max_tokens);
    jw_key(&w, "messages");
    jw_array(&w);
    jw_object(&w);
    jw_kv_str(&w, "role", "user");
    jw_key(&w, "content");
    jw_array(&w);
    jw_object(&w);
    jw_kv_str(&w, "type", "text");
    jw_kv_str(&w, "text", c->prompt.s);
    jw_end(&w);
    for (size_t i = 0; i < p->n && rc == ERR_OK; i++) {
        buf_clear(&image);
        rc = add_image(&image, c->files.v[p->views[i]].path);
        jw_object(&w);
        jw_kv_str(&w, "type", "image_url");
        jw_key(&w, "image_url");
        jw_object(&w);
        jw_kv_str(&w, "url", image.s);
        jw_end(&w);
        jw_end(&w);
    }
    while (w.depth)
        jw_end(&w);
    buf_release(&image);
    return rc;
}

/* The caption in a model's text: a JSON object, perhaps with words or a fence around it. */
static int read_caption(const char *text, const char *id, struct buf *out)
{
    for (const char *p = strchr(text, '{'); p; p = strchr(p + 1, '{')) {
        json_t *o = json_loads(p, JSON_DISABLE_EOF_CHECK, NULL);
        const json_t *able = json_object_get(o, "isDescribable"), *said = json_object_get(o, "description");
        const char *s = json_string_value(said);
        bool ok = json_is_boolean(able) && (json_is_false(able) || (s && *s && strlen(s) <= MAX_DESCRIPTION));
        if (ok) {
            struct jw w = JW_INIT(out);
            jw_object(&w);
            jw_kv_str(&w, "model_id", id);
            jw_kv_bool(&w, "isDescribable", json_is_true(able));
            jw_kv_str(&w, "description", json_is_true(able) ? s : "");
            jw_end(&w);
        }
        json_decref(o);
        if (ok)
            return ERR_OK;
    }
    return err_set(ERR_FORMAT, "answer: no {\"isDescribable\", \"description\"} in '%.80s'", text);
}

static int read_answer(const struct buf *body, const char *id, struct buf *out)
{
    json_t *root;
    int rc = json_read_mem("answer", body->s, body->n, &root);
    if (rc < 0)
        return rc;
    const json_t *choice = json_array_get(json_object_get(root, "choices"), 0);
    const char *text = json_string_value(json_object_get(json_object_get(choice, "message"), "content"));
    rc = text ? read_caption(text, id, out) : err_set(ERR_FORMAT, "answer: no choices[0].message.content in it");
    json_decref(root);
    return rc;
}

/* Holds the rate: starts are at least 60/rate seconds apart. */
static int wait_turn(struct captioning *c)
{
    if (rate <= 0)
        return ERR_OK;
    pthread_mutex_lock(&c->lock);
    double now = now_s(), start = c->next_start > now ? c->next_start : now;
    c->next_start = start + 60 / rate;
    pthread_mutex_unlock(&c->lock);
    while ((now = now_s()) < start) {
        if (stop_requested())
            return err_set(ERR_CANCELLED, "stopped");
        usleep(start - now > 0.05 ? 50000 : (useconds_t)((start - now) * 1e6));
    }
    return ERR_OK;
}

static void *caption_one(void *ctx, size_t i, int worker, int *code)
{
    struct captioning *c = ctx;
    struct part *p = &c->v[i];
    struct buf request = BUF_INIT, body = BUF_INIT, caption = BUF_INIT;
    if (!c->http[worker])
        c->http[worker] = http_new(&(struct http_opts){.token = c->key, .stall_s = timeout_s, .backoff_s = backoff_s});
    struct http *h = c->http[worker];
    int rc = build_request(c, p, &request);
    for (int ask = 0; rc == ERR_OK && ask < ASKS; ask++) {
        if ((rc = wait_turn(c)) < 0)
            break;
        rc = http_post(h, c->url, "application/json", request.s, request.n, MAX_ANSWER, &body);
        int status = http_last(h).status;
        if (rc == ERR_IO && (status == 401 || status == 403 || status == 404 || status == 405)) {
            c->refused = true;
            if (status == 401 && !c->key)
                err_set(ERR_IO, "%s (no API key in %s)", err_text(), key_env);
        }
        if (rc < 0 || (rc = read_answer(&body, p->id, &caption)) != ERR_FORMAT || ask + 1 == ASKS)
            break;
        rc = ERR_OK; /* models stray: asked once more */
    }
    buf_release(&request);
    buf_release(&body);
    *code = rc;
    if (rc < 0) {
        buf_release(&caption);
        return NULL;
    }
    return buf_detach(&caption);
}

static int caption_done(void *ctx, const struct pool_item *it)
{
    struct captioning *c = ctx;
    struct part *p = &c->v[it->index];
    if (it->code == ERR_CANCELLED)
        return ERR_OK;
    if (it->code < 0 && c->refused)
        return err_set(ERR_IO, "%s", it->error);
    p->caption = it->result;
    return tool_item(c->tool, &(struct run_item){.item = p->name, .state = it->code < 0 ? "failed" : "done",
                                                 .reason = it->code < 0 ? it->error : NULL, .seconds = it->seconds,
                                                 .input = c->files.v[p->views[0]].path, .result = p->caption});
}

static bool skip_part(void *ctx, size_t i)
{
    struct captioning *c = ctx;
    struct part *p = &c->v[i];
    if (!tool_item_current(c->tool, p->name, c->files.v[p->views[0]].path, NULL))
        return false;
    char *state;
    if (rundb_item_get(c->tool->db, p->name, &state, &p->caption) == ERR_OK)
        free(state);
    return true;
}

/* ---- the CSV (RFC 4180, lines ended by LF as in the published ones) ---- */

static int write_csv(const struct captioning *c, size_t *n_rows)
{
    struct buf b = BUF_INIT;
    *n_rows = 0;
    buf_puts(&b, "model_id,isDescribable,description\n");
    for (size_t i = 0; i < c->n; i++) {
        json_t *o = c->v[i].caption ? json_loads(c->v[i].caption, 0, NULL) : NULL;
        const char *s = json_string_value(json_object_get(o, "description"));
        if (o && s) {
            csv_field(&b, c->v[i].id);
            buf_puts(&b, json_is_true(json_object_get(o, "isDescribable")) ? ",True," : ",False,");
            csv_field(&b, s);
            buf_putc(&b, '\n');
            ++*n_rows;
        }
        json_decref(o);
    }
    int rc = file_write(out_path, b.s, b.n, false);
    buf_release(&b);
    return rc;
}

static int set_up(struct captioning *c)
{
    static const char *const suffixes[] = {".png", ".jpg", ".jpeg", ".webp", NULL};
    if (strncmp(endpoint, "http://", 7) && strncmp(endpoint, "https://", 8))
        return err_set(ERR_USAGE, "--endpoint %s: this is no http(s) URL", endpoint);
    size_t n = strlen(endpoint);
    while (n && endpoint[n - 1] == '/')
        n--;
    c->url = xasprintf("%.*s%s", (int)n, endpoint, n > 17 && !strncmp(endpoint + n - 17, "/chat/completions", 17)
                                                       ? "" : "/chat/completions");
    c->key = getenv(key_env);
    if (c->key && !*c->key)
        c->key = NULL;
    if (!path_is_dir(images_dir))
        return err_set(ERR_IO, "--images %s: %s", images_dir, path_exists(images_dir) ? "is no folder" : "does not exist");
    int rc = file_list_add(&c->files, images_dir, suffixes);
    if (rc < 0)
        return rc;
    if (!c->files.n)
        return err_set(ERR_IO, "%s: there are no pictures (.png, .jpg, .webp) in it", images_dir);
    group(c);
    if (!prompt_path) {
        buf_puts(&c->prompt, PROMPT);
    } else {
        struct file_map m;
        if ((rc = file_map(prompt_path, 1 << 20, &m)) < 0)
            return rc;
        buf_add(&c->prompt, m.data, m.size);
        file_unmap(&m);
        if (!c->prompt.n)
            return err_set(ERR_FORMAT, "--prompt %s: is empty", prompt_path);
        if (memchr(c->prompt.s, 0, c->prompt.n) || !utf8_valid(c->prompt.s, c->prompt.n))
            return err_set(ERR_FORMAT, "--prompt %s: is no UTF-8 text", prompt_path);
    }
    return ERR_OK;
}

static int run(struct tool *t)
{
    struct captioning c = {.tool = t, .lock = PTHREAD_MUTEX_INITIALIZER, .prompt = BUF_INIT};
    size_t n_rows = 0;
    int rc = set_up(&c);
    if (rc == ERR_OK)
        rc = tool_begin(t);
    if (rc < 0)
        goto out;
    c.http = xcalloc((size_t)t->threads, sizeof *c.http);
    rc = pool_run(&(struct pool_job){.n = c.n, .threads = t->threads, .what = "captioning", .unit = "parts",
                                     .work = caption_one, .done = caption_done, .skip = skip_part, .ctx = &c});
    if (rc == ERR_OK)
        rc = write_csv(&c, &n_rows);
    if (rc == ERR_OK)
        tool_print(t, "%zu captions of %zu parts in %s\n", n_rows, c.n, out_path);
    for (int i = 0; i < t->threads; i++)
        http_free(c.http[i]);
    free(c.http);
out:
    for (size_t i = 0; i < c.n; i++)
        part_release(&c.v[i]);
    free(c.v);
    free(c.url);
    buf_release(&c.prompt);
    file_list_release(&c.files);
    return rc;
}

int main(int argc, char **argv)
{
    struct tool t;
    tool_start(&t, &spec, argc, argv);
    return tool_finish(&t, run(&t));
}
