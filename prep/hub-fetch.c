/* hub-fetch: brings a repository (a base model, an adapter, a data set) from a hub that speaks
 * Hugging Face's protocol into a folder.
 *
 * One request lists the files of a revision, with sizes and checksums: SHA-256 of large files,
 * git's object id of the others.  Each is then fetched at that very commit, so a push in between
 * cannot mix two revisions, and checked.  OUT/.hub.json says at the end what the folder holds. */
#include <fnmatch.h>
#include <stdlib.h>
#include <sys/statvfs.h>

#include "lib/http.h"
#include "lib/prompt.h"
#include "lib/tool.h"

static const char *revision = "main", *out_dir, *endpoint;
static struct opt_list include, exclude;
static double backoff_s = 1;

static struct opt options[] = {
    {.name = "out", .type = OPT_STR, .value = &out_dir, .arg = "DIR", .flags = OPT_REQUIRED, .help = "where the files go"},
    {.name = "revision", .type = OPT_STR, .value = &revision, .arg = "R", .help = "branch, tag or commit"},
    {.name = "include", .type = OPT_LIST, .value = &include, .arg = "GLOB", .help = "only files like this"},
    {.name = "exclude", .type = OPT_LIST, .value = &exclude, .arg = "GLOB", .help = "no files like this"},
    {.name = "endpoint", .type = OPT_STR, .value = &endpoint, .arg = "URL",
     .help = "the hub (HF_ENDPOINT, else https://huggingface.co)"},
    {.name = "backoff", .type = OPT_REAL, .value = &backoff_s, .arg = "SECONDS", .flags = OPT_NO_KEY, .min = 0.001,
     .max = 3600, .help = "wait before a second try; doubles from there"},
    {0},
};

static const struct tool_spec spec = {
    .name = "hub-fetch",
    .args = "REPO --out DIR",
    .summary = "Downloads a model, adapter or data set from a Hugging Face hub.",
    .details = "REPO is OWNER/NAME, or datasets/OWNER/NAME.  A token, where one is needed, is taken from HF_TOKEN.\n"
               "Without --include everything comes but weights in formats that this toolkit does not read, where\n"
               "there are safetensors.  Started again, it goes on where it ended.\n"
               "\n"
               "  hub-fetch Qwen/Qwen2.5-3B --out models/qwen2.5-3b\n"
               "  HF_TOKEN=... hub-fetch meta-llama/Llama-3.2-3B-Instruct --out models/llama3.2-3b\n"
               "  hub-fetch JasonShiii/step-llm-llama3b --out models/step-llm-llama3b\n",
    .options = options,
    .flags = TOOL_KEEP_DONE,
    .min_args = 1,
    .max_args = 1,
};

/* Weights that are of no use here where there are safetensors. */
static const char *const OTHER_FORMATS[] = {"*.bin", "*.pth", "*.pt", "*.h5", "*.msgpack", "*.ot", "*.gguf", "*.onnx",
                                            "original/*", "onnx/*", "*.bin.index.json"};

struct hub_file {
    const char *path; /* borrowed from the listing */
    int64_t size;     /* -1: unknown */
    const char *sha256, *git_sha1;
};

struct hub {
    struct tool *tool;
    const char *repo;   /* without "datasets/" */
    const char *prefix; /* "" or "datasets/" in addresses of files */
    const char *kind;   /* "models" or "datasets" */
    const char *token;
    json_t *listing;
    const char *commit;
    struct hub_file *v;
    size_t n;
    struct http **http; /* one a worker */
};

static struct http *connection(const struct hub *hub)
{
    return http_new(&(struct http_opts){.token = hub->token, .backoff_s = backoff_s});
}

/* What the hub's refusal means for the one who asked. */
static int explain(const struct hub *hub, struct http *h)
{
    struct http_reply r = http_last(h);
    bool gated = !strcmp(r.error_code, "GatedRepo") || strstr(r.error_text, "restricted");
    if (r.status == 401 || r.status == 403 || r.status == 404) {
        if (gated && !hub->token)
            return err_set(ERR_IO, "%s is gated: accept its licence on %s/%s%s with your account, make a read token in its "
                           "settings, and run this again with HF_TOKEN set to it", hub->repo, endpoint, hub->prefix, hub->repo);
        if (gated)
            return err_set(ERR_IO, "%s is gated, and the account of this HF_TOKEN has no access: accept its licence on "
                           "%s/%s%s first (and see that the token may read gated repositories)", hub->repo, endpoint,
                           hub->prefix, hub->repo);
        if (!strcmp(r.error_code, "RevisionNotFound"))
            return err_set(ERR_USAGE, "%s has no revision '%s'", hub->repo, revision);
        if (r.status == 401 && hub->token && strcmp(r.error_code, "RepoNotFound"))
            return err_set(ERR_IO, "%s: the hub does not accept this HF_TOKEN", hub->repo);
        if (!strcmp(r.error_code, "RepoNotFound") || r.status == 401)
            return err_set(ERR_IO, "%s: there is no such repository on %s, or it is private%s", hub->repo, endpoint,
                           hub->token ? " and not open to this HF_TOKEN" : " (then set HF_TOKEN)");
    }
    return err_code();
}

static bool matches_any(const char *path, const char *const *globs, size_t n)
{
    for (size_t i = 0; i < n; i++)
        if (fnmatch(globs[i], path, 0) == 0)
            return true;
    return false;
}

/* Lists the repository and chooses. */
static int list_files(struct hub *hub)
{
    struct http *h = connection(hub);
    struct buf url = BUF_INIT, body = BUF_INIT;
    buf_printf(&url, "%s/api/%s/%s/revision/", endpoint, hub->kind, hub->repo);
    for (const char *p = revision; *p; p++) /* a branch may have slashes, which are one part here */
        *p == '/' ? buf_puts(&url, "%2F") : http_put_path(&url, (char[]){*p, 0});
    buf_puts(&url, "?blobs=true");
    int rc = http_get(h, url.s, 64 << 20, &body);
    if (rc == ERR_IO)
        rc = explain(hub, h);
    http_free(h);
    if (rc == ERR_OK)
        rc = json_read_mem(url.s, body.s, body.n, &hub->listing);
    const json_t *files = json_object_get(hub->listing, "siblings");
    hub->commit = json_string_value(json_object_get(hub->listing, "sha"));
    if (rc == ERR_OK && (!json_is_array(files) || !hub->commit || strspn(hub->commit, "0123456789abcdef") != strlen(hub->commit)))
        rc = err_set(ERR_FORMAT, "%s: this is no answer of a hub (no 'sha' and 'siblings')", url.s);
    buf_release(&url);
    buf_release(&body);
    if (rc < 0)
        return rc;

    size_t n_all = json_array_size(files);
    bool safetensors = false;
    for (size_t i = 0; i < n_all; i++) {
        const char *path = json_string_value(json_object_get(json_array_get(files, i), "rfilename"));
        safetensors |= path && path_has_suffix(path, ".safetensors");
    }
    hub->v = xcalloc(n_all + 1, sizeof *hub->v);
    for (size_t i = 0; i < n_all; i++) {
        const json_t *f = json_array_get(files, i), *lfs = json_object_get(f, "lfs"), *size = json_object_get(f, "size");
        struct hub_file e = {.path = json_string_value(json_object_get(f, "rfilename")), .size = -1};
        const char *bad = e.path ? path_unsafe(e.path) : "no name";
        if (bad || !strncmp(e.path, ".git/", 5))
            return err_set(ERR_FORMAT, "%s: the hub lists a file '%.100s', which is unsafe (%s); nothing was fetched",
                           hub->repo, e.path ? e.path : "", bad ? bad : "inside .git");
        if (include.n ? !matches_any(e.path, include.v, include.n)
                      : safetensors && matches_any(e.path, OTHER_FORMATS, ARRAY_LEN(OTHER_FORMATS)))
            continue;
        if (matches_any(e.path, exclude.v, exclude.n))
            continue;
        if (json_is_object(lfs)) {
            e.sha256 = json_string_value(json_object_get(lfs, "sha256"));
            size = json_object_get(lfs, "size");
        } else {
            e.git_sha1 = json_string_value(json_object_get(f, "blobId"));
        }
        if (json_is_integer(size))
            e.size = json_integer_value(size);
        if ((e.sha256 && strlen(e.sha256) != 64) || (e.git_sha1 && strlen(e.git_sha1) != 40))
            return err_set(ERR_FORMAT, "%s: the hub gives no proper checksum for %s", hub->repo, e.path);
        hub->v[hub->n++] = e;
    }
    if (!hub->n && include.n)
        return err_set(ERR_USAGE, "--include %s: none of the %zu files of %s is like this", include.v[0], n_all, hub->repo);
    return hub->n ? ERR_OK : err_set(ERR_FORMAT, "%s: there are no files in it", hub->repo);
}

static int check_room(const struct hub *hub)
{
    double need = 0;
    struct statvfs fs;
    char a[32], b[32];
    for (size_t i = 0; i < hub->n; i++) {
        char *path = path_join(out_dir, hub->v[i].path);
        if (hub->v[i].size > 0 && !path_exists(path))
            need += (double)hub->v[i].size;
        free(path);
    }
    if (statvfs(out_dir, &fs) == 0 && need > (double)fs.f_bavail * (double)fs.f_frsize)
        return err_set(ERR_IO, "%s: %s to download, but only %s free", out_dir, human_bytes(a, need),
                       human_bytes(b, (double)fs.f_bavail * (double)fs.f_frsize));
    return ERR_OK;
}

/* Items are named by their content too: a branch that moved on is fetched anew. */
static char *item_name(const struct hub_file *f)
{
    const char *id = f->sha256 ? f->sha256 : f->git_sha1;
    return id ? xasprintf("%s@%.12s", f->path, id) : xstrdup(f->path);
}

static bool skip_file(void *ctx, size_t i)
{
    struct hub *hub = ctx;
    char *item = item_name(&hub->v[i]), *path = path_join(out_dir, hub->v[i].path);
    bool skip = tool_item_current(hub->tool, item, NULL, path);
    if (skip && hub->v[i].size > 0)
        progress_add((uint64_t)hub->v[i].size, 0);
    free(item);
    free(path);
    return skip;
}

static void on_bytes(void *ctx, int64_t n, int64_t total)
{
    (void)ctx, (void)total;
    progress_add((uint64_t)n, 0);
}

static void *fetch_file(void *ctx, size_t i, int worker, int *code)
{
    struct hub *hub = ctx;
    const struct hub_file *f = &hub->v[i];
    struct buf url = BUF_INIT;
    char *path = path_join(out_dir, f->path);
    if (!hub->http[worker])
        hub->http[worker] = connection(hub);
    buf_printf(&url, "%s/%s%s/resolve/%s/", endpoint, hub->prefix, hub->repo, hub->commit);
    http_put_path(&url, f->path);
    *code = http_download(hub->http[worker], &(struct http_file){.url = url.s, .path = path, .size = f->size,
                                                                 .sha256 = f->sha256, .git_sha1 = f->git_sha1,
                                                                 .progress = on_bytes});
    if (*code == ERR_IO)
        *code = explain(hub, hub->http[worker]);
    buf_release(&url);
    free(path);
    return NULL;
}

static int file_done(void *ctx, const struct pool_item *it)
{
    struct hub *hub = ctx;
    const struct hub_file *f = &hub->v[it->index];
    if (it->code == ERR_CANCELLED)
        return ERR_OK;
    char *item = item_name(f), *path = path_join(out_dir, f->path);
    struct buf b = BUF_INIT;
    struct jw w = JW_INIT(&b);
    jw_object(&w);
    jw_kv_str(&w, "file", f->path);
    jw_kv_str(&w, "state", it->code < 0 ? "failed" : "done");
    if (f->size >= 0)
        jw_kv_int(&w, "bytes", f->size);
    if (it->code < 0)
        jw_kv_str(&w, "reason", it->error);
    jw_end(&w);
    int rc = tool_item(hub->tool, &(struct run_item){.item = item, .state = it->code < 0 ? "failed" : "done",
                                                     .reason = it->code < 0 ? it->error : NULL, .seconds = it->seconds,
                                                     .output = it->code < 0 ? NULL : path, .result = b.s});
    buf_release(&b);
    free(item);
    free(path);
    return rc;
}

/* OUT/.hub.json: where the folder's content is from, and for the released adapters the base model and the prompt
 * they are bound to; what loads the folder checks by it (lib/prompt.h). */
static int write_origin(const struct hub *hub)
{
    struct buf b = BUF_INIT;
    struct jw w = JW_INIT(&b);
    char *path = path_join(out_dir, ".hub.json");
    const struct prompt_release *release = prompt_release_of(hub->repo);
    w.indent = 2;
    jw_object(&w);
    jw_kv_str(&w, "repo", hub->repo);
    jw_kv_str(&w, "kind", hub->kind);
    jw_kv_str(&w, "revision", revision);
    jw_kv_str(&w, "commit", hub->commit);
    if (release) {
        jw_kv_str(&w, "base_model", release->base);
        jw_kv_str(&w, "prompt", release->retrieval ? "retrieval" : "plain");
        log_note("%s was trained on %s, with the prompt %s", hub->repo, release->base,
                 release->retrieval ? "with retrieval: generate with --rag" : "without retrieval: generate without --rag");
    }
    jw_key(&w, "files");
    jw_array(&w);
    for (size_t i = 0; i < hub->n; i++) {
        const struct hub_file *f = &hub->v[i];
        jw_object(&w);
        jw_kv_str(&w, "path", f->path);
        if (f->size >= 0)
            jw_kv_int(&w, "size", f->size);
        if (f->sha256)
            jw_kv_str(&w, "sha256", f->sha256);
        if (f->git_sha1)
            jw_kv_str(&w, "git_sha1", f->git_sha1);
        jw_end(&w);
    }
    jw_end(&w);
    jw_end(&w);
    buf_putc(&b, '\n');
    int rc = file_write(path, b.s, b.n, false);
    free(path);
    buf_release(&b);
    return rc;
}

/* "OWNER/NAME" or "datasets/OWNER/NAME" */
static int parse_repo(struct hub *hub, const char *arg)
{
    hub->kind = "models";
    hub->prefix = "";
    if (!strncmp(arg, "datasets/", 9)) {
        hub->kind = "datasets";
        hub->prefix = "datasets/";
        arg += 9;
    } else if (!strncmp(arg, "models/", 7)) {
        arg += 7;
    }
    hub->repo = arg;
    const char *slash = strchr(arg, '/');
    bool ok = slash && slash > arg && slash[1] && !strchr(slash + 1, '/') && strlen(arg) < 200 &&
              strspn(arg, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_./") == strlen(arg) &&
              !strstr(arg, "..");
    return ok ? ERR_OK : err_set(ERR_USAGE, "'%s': a repository is OWNER/NAME or datasets/OWNER/NAME", arg);
}

static int set_up(struct hub *hub)
{
    const char *env = getenv("HF_ENDPOINT"), *token = getenv("HF_TOKEN");
    char *e = xstrdup(endpoint && *endpoint ? endpoint : env && *env ? env : "https://huggingface.co");
    size_t n = strlen(e);
    while (n && e[n - 1] == '/')
        e[--n] = 0;
    endpoint = e;
    bool http = !strncmp(e, "http://", 7);
    if (!http && strncmp(e, "https://", 8))
        return err_set(ERR_USAGE, "--endpoint %s: this is no http(s) URL", e);
    if (token) {
        static char bare[1024]; /* a file's newline may have come along */
        snprintf(bare, sizeof bare, "%.*s", (int)strcspn(token, " \t\r\n"), token);
        hub->token = *bare ? bare : NULL;
    }
    bool here = !strncmp(e + 7, "127.0.0.1", 9) || !strncmp(e + 7, "localhost", 9) || !strncmp(e + 7, "[::1]", 5);
    if (http && hub->token && !here)
        return err_set(ERR_USAGE, "--endpoint %s: HF_TOKEN would go there unencrypted; use https, or unset HF_TOKEN", e);
    return parse_repo(hub, hub->tool->args.v[0]);
}

static int run(struct tool *t)
{
    struct hub hub = {.tool = t};
    uint64_t total = 0;
    char size[32];
    int rc = set_up(&hub);
    if (rc == ERR_OK)
        rc = mkdir_p(out_dir);
    if (rc == ERR_OK)
        rc = list_files(&hub);
    if (rc == ERR_OK)
        rc = check_room(&hub);
    if (rc == ERR_OK)
        rc = tool_begin(t);
    if (rc < 0)
        goto out;
    for (size_t i = 0; i < hub.n; i++)
        total += hub.v[i].size > 0 ? (uint64_t)hub.v[i].size : 0;
    log_note("%s at %.12s: %zu files, %s", hub.repo, hub.commit, hub.n, human_bytes(size, (double)total));
    hub.http = xcalloc((size_t)t->threads, sizeof *hub.http);
    progress_start("fetching", total, "B");
    rc = pool_run(&(struct pool_job){.n = hub.n, .threads = t->threads, .work = fetch_file, .done = file_done,
                                     .skip = skip_file, .ctx = &hub});
    progress_end();
    for (int i = 0; i < t->threads; i++)
        http_free(hub.http[i]);
    free(hub.http);
    if (rc == ERR_OK && !t->n_failed)
        rc = write_origin(&hub);
    if (rc == ERR_OK)
        tool_print(t, "%zu of %zu files of %s in %s\n", t->n_done + t->n_current, hub.n, hub.repo, out_dir);
out:
    json_decref(hub.listing);
    free(hub.v);
    return rc;
}

int main(int argc, char **argv)
{
    struct tool t;
    tool_start(&t, &spec, argc, argv);
    return tool_finish(&t, run(&t));
}
