/* serve: a web page and an OpenAI-compatible API on a model.
 *
 * Three threads share the jobs under one lock: the HTTP library's (all connections), the main thread, which alone uses
 * the engine, the tokenizer's texts and the run database, and one that has parts drawn.  A connection that waits is
 * suspended, and resumed when there is something to send. */
#include <errno.h>
#include <microhttpd.h>
#include <netinet/in.h>
#include <arpa/inet.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <unistd.h>

#include "lib/answer.h"
#include "lib/asset.h"
#include "lib/prompt.h"
#include "lib/sibling.h"
#include "lib/tool.h"
#include "model/engine.h"
#include "model/session.h"

static struct session_options use = {.device = "auto", .dtype = "auto", .grammar = "part21", .order = "auto"};
static const char *host = "127.0.0.1";
static int64_t port = 8080, batch = 8, max_waiting = 64, max_tokens = 16384, max_body = 1000000, draft = 31, keep = 64;
static double grace = 20;

static struct opt options[] = {
    SESSION_OPTIONS(use),
    {.name = "host", .type = OPT_STR, .value = &host, .arg = "ADDRESS", .help = "to listen on; beyond this machine anyone may use it", .flags = OPT_NO_KEY},
    {.name = "port", .type = OPT_INT, .value = &port, .arg = "N", .help = "0: any that is free", .min = 0, .max = 65535, .flags = OPT_NO_KEY},
    {.name = "batch", .type = OPT_INT, .value = &batch, .arg = "N", .help = "sequences decoded together", .min = 1, .max = 1024},
    {.name = "max-waiting", .type = OPT_INT, .value = &max_waiting, .arg = "N", .help = "requests that may wait for a place; more get status 429", .min = 0, .max = 100000},
    {.name = "max-tokens", .type = OPT_INT, .value = &max_tokens, .arg = "N", .help = "prompt and answer together (at most what the model knows)", .min = 64, .max = 1e6},
    {.name = "max-body", .type = OPT_INT, .value = &max_body, .arg = "BYTES", .help = "of a request; more gets status 413", .min = 1000, .max = 1e9},
    {.name = "draft", .type = OPT_INT, .value = &draft, .arg = "N", .help = "tokens guessed from the text so far and verified together (0: none)", .min = 0, .max = 63},
    {.name = "keep", .type = OPT_INT, .value = &keep, .arg = "N", .help = "finished parts kept for download", .min = 1, .max = 10000},
    {.name = "grace", .type = OPT_REAL, .value = &grace, .arg = "S", .help = "seconds that running requests get after SIGTERM", .min = 0, .max = 3600, .flags = OPT_NO_KEY},
    {0},
};

static const struct tool_spec spec = {
    .name = "serve",
    .args = "--model DIR",
    .summary = "Serves a model to a browser and to programs: type a caption, see the part turn, download it.",
    .details = "  serve --model models/demo                      then open http://127.0.0.1:8080/\n"
               "  curl localhost:8080/v1/completions -H 'Content-Type: application/json' -d '{\"caption\": \"a washer\"}'\n\n"
               "POST /v1/completions takes OpenAI's prompt, max_tokens, temperature, top_p, seed, stop, stream, or a caption in\n"
               "place of the prompt; GET /v1/models, /health, /parts/ID.step, ID.glb, ID.png, ID.json.\n",
    .options = options,
};

/* The page is part of the program, and the script that draws parts a part of the page: see put_page(). */
ASSET(serve_page, "infer/serve.html");
ASSET(view3d_js, "lib/view3d.js");

/* ---- jobs ---- */

enum state { WAITING, RUNNING, REFUSED, DONE };

struct job {
    struct job *next, *prev;     /* all that are alive */
    struct job *queued;          /* not yet seen by the main thread */
    int refs;                    /* connection, engine */
    struct MHD_Connection *conn; /* NULL: gone */
    bool suspended, cancelled, stream, caption, submitted;
    char id[32];
    /* what is asked */
    char *prompt;                /* or the caption */
    int64_t max_new;
    struct engine_sampling sampling;
    char *stop[4];
    int n_stop;
    bool grammar;
    /* what comes */
    enum state state;
    int status;                  /* of a refused one */
    struct buf out;              /* to send: from `sent` on */
    size_t sent;
    int64_t handle, n_prompt;
    struct buf text;
    size_t told;                 /* of text: in out */
    struct tok_stream decoder;
    struct grammar_state *rules;
    struct token_mask mask;
    const char *finish;
    double started;
    double created;
};

/* A finished part, for download. */
struct part {
    char id[32];
    struct answer answer;
    struct buf glb, png;
    enum { TO_DRAW, DRAWN, NOT_DRAWN } drawn;
    char *why;
};

static struct server {
    struct tool *t;
    struct session s;
    struct engine *e;
    struct MHD_Daemon *http;
    pthread_mutex_t lock;
    pthread_cond_t wake, draw;   /* the main thread; the drawing thread */
    struct job *jobs, *first, **last;
    int64_t n_jobs, n_served, n_refused, n_cancelled, last_id;
    struct part **parts;         /* [keep], a ring */
    size_t next_part;
    bool stopping, ending, draws;
    char name[200], *folder;
} sv = {.lock = PTHREAD_MUTEX_INITIALIZER, .wake = PTHREAD_COND_INITIALIZER, .draw = PTHREAD_COND_INITIALIZER, .last = &sv.first};

static void job_unref(struct job *j) /* under the lock */
{
    if (--j->refs)
        return;
    if (j->prev)
        j->prev->next = j->next;
    else
        sv.jobs = j->next;
    if (j->next)
        j->next->prev = j->prev;
    for (int i = 0; i < j->n_stop; i++)
        free(j->stop[i]);
    grammar_state_free(j->rules);
    buf_release(&j->out);
    buf_release(&j->text);
    free(j->prompt);
    free(j);
}

static void resume(struct job *j) /* under the lock */
{
    if (j->suspended && j->conn) {
        j->suspended = false;
        MHD_resume_connection(j->conn);
    }
}

static void put_error(struct buf *b, int status, const char *message)
{
    struct jw w = JW_INIT(b);
    jw_object(&w);
    jw_key(&w, "error");
    jw_object(&w);
    jw_kv_str(&w, "message", message);
    jw_kv_str(&w, "type", status == 429 ? "rate_limit_error" : status >= 500 ? "server_error" : "invalid_request_error");
    jw_key(&w, "param");
    jw_null(&w);
    jw_kv_int(&w, "code", status);
    jw_end(&w);
    jw_end(&w);
    buf_putc(b, '\n');
}

static void refuse(struct job *j, int status, const char *message) /* under the lock */
{
    j->state = REFUSED;
    j->status = status;
    buf_clear(&j->out);
    put_error(&j->out, status, message);
    resume(j);
}

/* A completion object, all but its last brace; text from `from` on; finish NULL: more comes. */
static void put_completion(const struct job *j, size_t from, const char *finish, struct buf *b)
{
    struct jw w = JW_INIT(b);
    jw_object(&w);
    jw_kv_str(&w, "id", j->id);
    jw_kv_str(&w, "object", "text_completion");
    jw_kv_int(&w, "created", (int64_t)j->created);
    jw_kv_str(&w, "model", sv.name);
    jw_key(&w, "choices");
    jw_array(&w);
    jw_object(&w);
    jw_kv_int(&w, "index", 0);
    jw_key(&w, "text");
    jw_strn(&w, j->text.s + from, j->text.n - from);
    jw_key(&w, "logprobs");
    jw_null(&w);
    jw_key(&w, "finish_reason");
    jw_str(&w, finish);
    jw_end(&w);
    jw_end(&w);
}

/* ---- the engine's side: main thread ---- */

static bool on_token(void *ctx, int32_t id)
{
    struct job *j = ctx;
    static const char end[] = "END-ISO-10303-21;";
    bool more = true;
    pthread_mutex_lock(&sv.lock);
    if (tok_is_stop(sv.s.tok, id)) {
        more = false;
    } else {
        size_t before = j->text.n;
        tok_stream_push(sv.s.tok, &j->decoder, id, true, &j->text);
        size_t from = before > 64 ? before - 64 : 0;
        if (j->caption && strstr(j->text.s + from, end))
            more = false;
        for (int i = 0; i < j->n_stop && more; i++) {
            size_t n = strlen(j->stop[i]), since = before > n ? before - n : 0;
            char *p = strstr(j->text.s + since, j->stop[i]);
            if (p) { /* the stop text is not part of the answer */
                j->text.n = (size_t)(p - j->text.s);
                *p = 0;
                more = false;
            }
        }
        /* A stop text may be on its way: that much is held back. */
        size_t hold = 0, ready;
        for (int i = 0; i < j->n_stop && more; i++)
            hold = strlen(j->stop[i]) - 1 > hold ? strlen(j->stop[i]) - 1 : hold;
        ready = j->text.n > hold ? j->text.n - hold : 0;
        while (ready > j->told && ready < j->text.n && ((unsigned char)j->text.s[ready] & 0xc0) == 0x80)
            ready--;
        if (j->stream && ready > j->told && more) {
            size_t all = j->text.n;
            j->text.n = ready;
            buf_puts(&j->out, "data: ");
            put_completion(j, j->told, NULL, &j->out);
            buf_puts(&j->out, "}\n\n");
            j->text.n = all;
            j->told = ready;
            resume(j);
        }
    }
    more = more && !j->cancelled;
    pthread_mutex_unlock(&sv.lock);
    return more;
}

/* Keeps the part, and has it drawn. */
static void keep_part(struct job *j, const struct answer *a) /* under the lock */
{
    struct part **at = &sv.parts[sv.next_part++ % (size_t)keep], *p = xcalloc(1, sizeof *p);
    if (*at) {
        answer_release(&(*at)->answer);
        buf_release(&(*at)->glb);
        buf_release(&(*at)->png);
        free((*at)->why);
        free(*at);
    }
    *at = p;
    memcpy(p->id, j->id, sizeof p->id);
    p->answer = *a;
    buf_init(&p->glb);
    buf_init(&p->png);
    p->drawn = sv.draws && a->valid ? TO_DRAW : NOT_DRAWN;
    p->why = p->drawn == NOT_DRAWN ? xstrdup(a->valid ? "there is no step-render beside this program" : "the text is not valid Part 21") : NULL;
    pthread_cond_signal(&sv.draw);
}

/* A job that had begun ends with an error. */
static void fail_job(struct job *j, const char *why) /* under the lock */
{
    sv.n_jobs--;
    if (j->stream) {
        buf_puts(&j->out, "data: ");
        put_error(&j->out, 500, why);
        buf_puts(&j->out, "\ndata: [DONE]\n\n");
        j->state = DONE;
        resume(j);
    } else {
        refuse(j, 500, why);
    }
    job_unref(j);
}

static void on_done(void *ctx, const struct engine_result *r)
{
    struct job *j = ctx;
    struct answer a = {0};
    bool cancelled = r->finish == ENGINE_CANCELLED || j->cancelled;
    double seconds = now_s() - j->started;
    if (r->finish == ENGINE_NOT_FINITE && !cancelled) {
        char item[32];
        memcpy(item, j->id, sizeof item);
        pthread_mutex_lock(&sv.lock);
        grammar_state_free(j->rules);
        j->rules = NULL;
        fail_job(j, strchr(ENGINE_NOT_FINITE_WHY, ' ') + 1);
        pthread_mutex_unlock(&sv.lock);
        tool_item(sv.t, &(struct run_item){.item = item, .state = "failed", .reason = ENGINE_NOT_FINITE_WHY, .seconds = seconds});
        return;
    }
    tok_stream_end(&j->decoder, &j->text);
    if (!cancelled)
        answer_make(j->id, j->text.s, j->text.n, &a);
    pthread_mutex_lock(&sv.lock);
    j->finish = cancelled ? "cancelled" : r->finish == ENGINE_LENGTH ? "length" : "stop";
    struct buf *b = &j->out;
    if (j->stream)
        buf_puts(b, "data: ");
    put_completion(j, j->stream ? j->told : 0, j->finish, b);
    buf_printf(b, ",\"usage\":{\"prompt_tokens\":%lld,\"completion_tokens\":%lld,\"total_tokens\":%lld}", (long long)j->n_prompt, (long long)r->tokens,
               (long long)(j->n_prompt + r->tokens));
    if (!cancelled) {
        struct buf extra = BUF_INIT;
        struct jw w = JW_INIT(&extra);
        jw_object(&w);
        jw_kv_str(&w, "id", j->id);
        jw_kv_bool(&w, "valid", a.valid);
        jw_kv_int(&w, "entities", (int64_t)a.entities);
        jw_kv_int(&w, "dangling", (int64_t)a.dangling);
        jw_kv_str(&w, "checks", a.checks.s);
        jw_kv_int(&w, "grammar_changed", r->changed);
        jw_kv_real(&w, "seconds", seconds);
        jw_end(&w);
        buf_printf(b, ",\"part\":%s", extra.s);
        buf_release(&extra);
    }
    buf_puts(b, j->stream ? "}\n\ndata: [DONE]\n\n" : "}\n");
    j->state = DONE;
    sv.n_jobs--;
    sv.n_served += !cancelled;
    sv.n_cancelled += cancelled;
    if (!cancelled)
        keep_part(j, &a);
    char id[32], line[200];
    memcpy(id, j->id, sizeof id);
    snprintf(line, sizeof line, "{\"id\":\"%s\",\"prompt_tokens\":%lld,\"tokens\":%lld,\"finish_reason\":\"%s\",\"changed\":%lld,\"seconds\":%.3f}", id,
             (long long)j->n_prompt, (long long)r->tokens, j->finish, (long long)r->changed, seconds);
    grammar_state_free(j->rules);
    j->rules = NULL;
    resume(j);
    job_unref(j);
    pthread_mutex_unlock(&sv.lock);
    tool_item(sv.t, &(struct run_item){.item = id, .state = cancelled ? "skipped" : "done", .reason = cancelled ? "cancelled: the client went away" : NULL,
                                       .seconds = seconds, .result = line});
}

/* Gives a job to the engine; what it cannot take is refused. */
static void start(struct job *j)
{
    struct tok_ids ids = {0};
    struct retrieval_hit hit[RETRIEVAL_NEAREST];
    const char *retrieved = NULL;
    size_t n;
    int taken, status = 400, rc = ERR_OK;
    if (j->caption && sv.s.library && (rc = retrieval_find(sv.s.library, j->prompt, NULL, hit, &n, &taken)) == ERR_OK) {
        if (taken >= 0)
            retrieved = hit[taken].part;
        else
            rc = err_set(ERR_USAGE, "none of the nearest parts may be retrieved");
    }
    if (rc == ERR_OK)
        rc = j->caption ? prompt_encode(sv.s.tok, j->prompt, retrieved, &ids) : tok_encode(sv.s.tok, j->prompt, strlen(j->prompt), true, &ids);
    if (rc == ERR_OK && !ids.n)
        rc = err_set(ERR_USAGE, "the prompt is empty");
    int64_t room = max_tokens - (int64_t)ids.n;
    if (rc == ERR_OK && room < 1)
        rc = err_set(ERR_USAGE, "the prompt has %zu tokens, %lld fit together with the answer", ids.n, (long long)max_tokens);
    if (rc == ERR_OK && j->max_new > room)
        j->max_new = room;
    if (rc == ERR_OK && j->grammar && (rc = grammar_state_new(sv.s.grammar, j->max_new, &j->rules)) == ERR_OK)
        grammar_token_mask(j->rules, &j->mask);
    j->n_prompt = (int64_t)ids.n;
    j->started = now_s();
    if (rc == ERR_OK) {
        struct engine_request q = {.prompt = ids.v, .n_prompt = ids.n, .max_new = j->max_new, .sampling = j->sampling, .draft = draft,
                                   .mask = j->grammar ? &j->mask : NULL, .token = on_token, .done = on_done, .ctx = j};
        rc = engine_submit(sv.e, &q, &j->handle);
    }
    if (rc == ERR_NOMEM || rc == ERR_EXTERN)
        status = 500;
    tok_ids_release(&ids);
    pthread_mutex_lock(&sv.lock);
    if (rc < 0) {
        sv.n_jobs--;
        sv.n_refused++;
        refuse(j, status, err_text());
        job_unref(j);
    } else {
        j->submitted = true;
        j->state = RUNNING;
        if (j->stream)
            resume(j);
    }
    pthread_mutex_unlock(&sv.lock);
}

/* A suspended connection is not listened to: whether its client is still there must be looked after. */
static void find_gone(void)
{
    pthread_mutex_lock(&sv.lock);
    for (struct job *j = sv.jobs; j; j = j->next) {
        if (!j->conn || !j->suspended || j->cancelled || j->state >= REFUSED)
            continue;
        const union MHD_ConnectionInfo *i = MHD_get_connection_info(j->conn, MHD_CONNECTION_INFO_CONNECTION_FD);
        char c;
        ssize_t n = i ? recv(i->connect_fd, &c, 1, MSG_PEEK | MSG_DONTWAIT) : -1;
        if (n == 0 || (n < 0 && i && errno != EAGAIN && errno != EWOULDBLOCK && errno != EINTR)) {
            j->cancelled = true;
            j->stream = true; /* the HTTP thread shall end it at once, without waiting for the answer */
            resume(j);
        }
    }
    pthread_mutex_unlock(&sv.lock);
}

static void cancel_marked(bool all)
{
    for (;;) {
        int64_t handle = 0;
        pthread_mutex_lock(&sv.lock);
        for (struct job *j = sv.jobs; j && !handle; j = j->next)
            if (j->submitted && j->state == RUNNING && (all || j->cancelled)) {
                handle = j->handle;
                j->submitted = false; /* once is enough */
            }
        pthread_mutex_unlock(&sv.lock);
        if (!handle)
            return;
        engine_cancel(sv.e, handle);
    }
}

/* The engine failed: what is in it gets an error, and a new one is made. */
static int restart_engine(const struct engine_options *o)
{
    char why[1024];
    snprintf(why, sizeof why, "%s", err_text());
    log_error("%s", why);
    engine_free(sv.e);
    sv.e = NULL;
    pthread_mutex_lock(&sv.lock);
    for (struct job *j = sv.jobs, *next; j; j = next) {
        next = j->next;
        if (j->state != RUNNING)
            continue;
        fail_job(j, why);
    }
    pthread_mutex_unlock(&sv.lock);
    return engine_new(sv.s.m, o, &sv.e);
}

static int work(const struct engine_options *o)
{
    double looked = 0, until = 0;
    int rc = ERR_OK;
    while (rc >= 0) {
        pthread_mutex_lock(&sv.lock);
        struct job *j = sv.first;
        sv.first = NULL;
        sv.last = &sv.first;
        pthread_mutex_unlock(&sv.lock);
        while (j) {
            struct job *next = j->queued;
            j->queued = NULL;
            start(j);
            j = next;
        }
        if (now_s() - looked > 0.5) {
            looked = now_s();
            find_gone();
        }
        cancel_marked(false);
        if (stop_requested() && !sv.stopping) {
            pthread_mutex_lock(&sv.lock);
            sv.stopping = true;
            log_note("stopping: %lld requests get %.0f s to end", (long long)sv.n_jobs, grace);
            pthread_mutex_unlock(&sv.lock);
            until = now_s() + grace;
        }
        if (sv.stopping && now_s() > until)
            cancel_marked(true);
        rc = engine_step(sv.e);
        if (rc < 0 && (rc = restart_engine(o)) < 0)
            break;
        pthread_mutex_lock(&sv.lock);
        bool idle = rc == 0 && !sv.first;
        if (idle && sv.stopping && !sv.n_jobs) {
            pthread_mutex_unlock(&sv.lock);
            return ERR_OK;
        }
        if (idle) {
            struct timespec at;
            clock_gettime(CLOCK_REALTIME, &at);
            at.tv_nsec += 200000000;
            at.tv_sec += at.tv_nsec / 1000000000;
            at.tv_nsec %= 1000000000;
            pthread_cond_timedwait(&sv.wake, &sv.lock, &at);
        }
        pthread_mutex_unlock(&sv.lock);
    }
    return rc;
}

/* ---- drawing: a thread that runs step-render and renderability ---- */

static struct part *find_part(const char *id) /* under the lock */
{
    for (int64_t i = 0; i < keep; i++)
        if (sv.parts[i] && !strcmp(sv.parts[i]->id, id))
            return sv.parts[i];
    return NULL;
}

static void *draw_parts(void *arg)
{
    (void)arg;
    pthread_mutex_lock(&sv.lock);
    while (!sv.ending) {
        struct part *p = NULL;
        for (int64_t i = 0; i < keep; i++) /* the newest first: somebody looks at it */
            if (sv.parts[i] && sv.parts[i]->drawn == TO_DRAW)
                p = sv.parts[i];
        if (!p) {
            pthread_cond_wait(&sv.draw, &sv.lock);
            continue;
        }
        char id[32];
        struct answer a = {.valid = true, .checks = BUF_INIT};
        struct buf step = BUF_INIT, glb = BUF_INIT, png = BUF_INIT;
        memcpy(id, p->id, sizeof id);
        buf_add(&step, p->answer.step.s, p->answer.step.n);
        pthread_mutex_unlock(&sv.lock);
        char *path = xasprintf("%s/part.step", sv.folder), *to_glb = xasprintf("%s/part.glb", sv.folder), *to_png = xasprintf("%s/part.png", sv.folder);
        int rc = file_write(path, step.s, step.n, false);
        if (rc == ERR_OK) {
            answer_examine(path, 30, &a);
            rc = answer_draw(path, 600, 30, to_png, to_glb);
        }
        struct file_map m;
        if (rc == ERR_OK && (rc = file_map(to_glb, 1 << 28, &m)) == ERR_OK) {
            buf_add(&glb, m.data, m.size);
            file_unmap(&m);
        }
        if (rc == ERR_OK && (rc = file_map(to_png, 1 << 28, &m)) == ERR_OK) {
            buf_add(&png, m.data, m.size);
            file_unmap(&m);
        }
        pthread_mutex_lock(&sv.lock);
        if ((p = find_part(id))) { /* it may have been pushed out meanwhile */
            p->drawn = rc < 0 ? NOT_DRAWN : DRAWN;
            p->why = rc < 0 ? xstrdup(rc == ERR_FORMAT ? "OpenCASCADE cannot draw it" : err_text()) : NULL;
            p->answer.shape = a.shape;
            buf_add(&p->answer.checks, a.checks.s, a.checks.n);
            p->glb = glb;
            p->png = png;
        } else {
            buf_release(&glb);
            buf_release(&png);
        }
        buf_release(&step);
        buf_release(&a.checks);
        free(path);
        free(to_glb);
        free(to_png);
    }
    pthread_mutex_unlock(&sv.lock);
    return NULL;
}

/* ---- HTTP ---- */

/* One request: its body as it comes, then its job. */
struct call {
    struct buf body;
    bool too_big;
    struct job *job;
};

static enum MHD_Result send_bytes(struct MHD_Connection *c, int status, const char *type, const char *s, size_t n)
{
    struct MHD_Response *r = MHD_create_response_from_buffer(n, (void *)(uintptr_t)s, MHD_RESPMEM_MUST_COPY);
    if (!r)
        return MHD_NO;
    MHD_add_response_header(r, "Content-Type", type);
    MHD_add_response_header(r, "X-Content-Type-Options", "nosniff");
    MHD_add_response_header(r, "Cache-Control", "no-store");
    if (status == 429 || status == 503)
        MHD_add_response_header(r, "Retry-After", "5");
    if (status == 405)
        MHD_add_response_header(r, "Allow", "GET, HEAD, POST");
    enum MHD_Result ok = MHD_queue_response(c, (unsigned)status, r);
    MHD_destroy_response(r);
    return ok;
}

static enum MHD_Result send_error(struct MHD_Connection *c, int status, const char *fmt, ...) __attribute__((format(printf, 3, 4)));
static enum MHD_Result send_error(struct MHD_Connection *c, int status, const char *fmt, ...)
{
    char message[300];
    va_list ap;
    struct buf b = BUF_INIT;
    va_start(ap, fmt);
    vsnprintf(message, sizeof message, fmt, ap);
    va_end(ap);
    put_error(&b, status, message);
    enum MHD_Result ok = send_bytes(c, status, "application/json", b.s, b.n);
    buf_release(&b);
    return ok;
}

/* The page, with the script where it says "view3d.js". */
static void put_page(struct buf *b)
{
    static const char mark[] = "<script src=\"view3d.js\"></script>";
    const char *at = strstr(serve_page, mark);
    buf_add(b, serve_page, at ? (size_t)(at - serve_page) : strlen(serve_page));
    if (at)
        buf_printf(b, "<script>\n%s</script>%s", view3d_js, at + sizeof mark - 1);
}

static enum MHD_Result send_page(struct MHD_Connection *c)
{
    struct buf b = BUF_INIT;
    put_page(&b);
    struct MHD_Response *r = MHD_create_response_from_buffer(b.n, b.s, MHD_RESPMEM_MUST_COPY);
    buf_release(&b);
    if (!r)
        return MHD_NO;
    MHD_add_response_header(r, "Content-Type", "text/html; charset=utf-8");
    MHD_add_response_header(r, "Content-Security-Policy", "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src 'self' data:; "
                                                          "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'");
    MHD_add_response_header(r, "X-Content-Type-Options", "nosniff");
    enum MHD_Result ok = MHD_queue_response(c, 200, r);
    MHD_destroy_response(r);
    return ok;
}

static enum MHD_Result send_health(struct MHD_Connection *c)
{
    struct buf b = BUF_INIT;
    struct jw w = JW_INIT(&b);
    pthread_mutex_lock(&sv.lock);
    jw_object(&w);
    jw_kv_str(&w, "status", sv.stopping ? "stopping" : "ok");
    jw_kv_str(&w, "model", sv.name);
    jw_kv_bool(&w, "retrieval", sv.s.library != NULL);
    jw_kv_bool(&w, "grammar", sv.s.grammar != NULL);
    jw_kv_int(&w, "requests", sv.n_jobs);
    jw_kv_int(&w, "served", sv.n_served);
    jw_kv_int(&w, "refused", sv.n_refused);
    jw_kv_int(&w, "cancelled", sv.n_cancelled);
    jw_end(&w);
    pthread_mutex_unlock(&sv.lock);
    enum MHD_Result ok = send_bytes(c, 200, "application/json", b.s, b.n);
    buf_release(&b);
    return ok;
}

static enum MHD_Result send_models(struct MHD_Connection *c)
{
    struct buf b = BUF_INIT;
    struct jw w = JW_INIT(&b);
    jw_object(&w);
    jw_kv_str(&w, "object", "list");
    jw_key(&w, "data");
    jw_array(&w);
    jw_object(&w);
    jw_kv_str(&w, "id", sv.name);
    jw_kv_str(&w, "object", "model");
    jw_kv_int(&w, "created", 0);
    jw_kv_str(&w, "owned_by", "local");
    jw_end(&w);
    jw_end(&w);
    jw_end(&w);
    enum MHD_Result ok = send_bytes(c, 200, "application/json", b.s, b.n);
    buf_release(&b);
    return ok;
}

/* /parts/ID.step, .glb, .png, .json */
static enum MHD_Result send_part(struct MHD_Connection *c, const char *name)
{
    const char *dot = strrchr(name, '.');
    char id[32];
    if (!dot || (size_t)(dot - name) >= sizeof id)
        return send_error(c, 404, "no such part");
    snprintf(id, sizeof id, "%.*s", (int)(dot - name), name);
    struct buf b = BUF_INIT;
    const char *type = NULL;
    int status = 404;
    pthread_mutex_lock(&sv.lock);
    const struct part *p = find_part(id);
    if (p && !strcmp(dot, ".step")) {
        type = "model/step";
        buf_add(&b, p->answer.step.s, p->answer.step.n);
    } else if (p && (!strcmp(dot, ".glb") || !strcmp(dot, ".png"))) {
        type = dot[1] == 'g' ? "model/gltf-binary" : "image/png";
        const struct buf *from = dot[1] == 'g' ? &p->glb : &p->png;
        buf_add(&b, from->s, from->n);
        status = p->drawn == TO_DRAW ? 202 : 404;
    } else if (p && !strcmp(dot, ".json")) {
        struct jw w = JW_INIT(&b);
        static const char *const drawn[] = {"waiting", "drawn", "not drawn"};
        type = "application/json";
        jw_object(&w);
        jw_kv_str(&w, "id", p->id);
        jw_kv_bool(&w, "valid", p->answer.valid);
        jw_kv_int(&w, "entities", (int64_t)p->answer.entities);
        jw_kv_str(&w, "checks", p->answer.checks.s);
        jw_kv_str(&w, "picture", drawn[p->drawn]);
        jw_key(&w, "reason");
        jw_str(&w, p->why);
        jw_end(&w);
    }
    pthread_mutex_unlock(&sv.lock);
    enum MHD_Result ok;
    if (type && b.n) {
        struct MHD_Response *r = MHD_create_response_from_buffer(b.n, b.s, MHD_RESPMEM_MUST_COPY);
        char shown[80];
        MHD_add_response_header(r, "Content-Type", type);
        MHD_add_response_header(r, "X-Content-Type-Options", "nosniff");
        snprintf(shown, sizeof shown, "attachment; filename=\"%s.step\"", id);
        if (!strcmp(dot, ".step"))
            MHD_add_response_header(r, "Content-Disposition", shown);
        ok = MHD_queue_response(c, 200, r);
        MHD_destroy_response(r);
    } else if (status == 202) {
        ok = send_bytes(c, 202, "application/json", "{\"status\":\"drawing\"}\n", 21);
    } else {
        ok = send_error(c, 404, "%s", p ? "there is no such file of this part" : "no such part: the last parts alone are kept");
    }
    buf_release(&b);
    return ok;
}

/* ---- POST /v1/completions ---- */

static bool number_in(const json_t *o, const char *key, double lo, double hi, double *out, char *why, size_t size)
{
    const json_t *v = json_object_get(o, key);
    if (!v || json_is_null(v))
        return true;
    double x = json_number_value(v);
    if (!json_is_number(v) || !(x >= lo && x <= hi)) {
        snprintf(why, size, "%s: a number from %g to %g is due", key, lo, hi);
        return false;
    }
    *out = x;
    return true;
}

static const char *text_of(const json_t *v, char *why, size_t size, const char *key)
{
    if (json_is_array(v) && json_array_size(v) == 1)
        v = json_array_get(v, 0);
    if (json_is_string(v) && strlen(json_string_value(v)) == json_string_length(v))
        return json_string_value(v);
    snprintf(why, size, "%s: a string without NUL is due", key);
    return NULL;
}

/* Fills j; "" in why: all well. */
static void read_request(const json_t *o, struct job *j, char *why, size_t size)
{
    double most = (double)max_tokens, temperature = 0, top_p = 1, seed = 0, n = 1;
    const json_t *prompt = json_object_get(o, "prompt"), *caption = json_object_get(o, "caption"), *stop = json_object_get(o, "stop");
    const json_t *g = json_object_get(o, "grammar"), *model = json_object_get(o, "model");
    *why = 0;
    if (!json_is_object(o)) {
        snprintf(why, size, "a JSON object is due");
        return;
    }
    if (!prompt == !caption) {
        snprintf(why, size, "either prompt or caption is due");
        return;
    }
    const char *text = text_of(prompt ? prompt : caption, why, size, prompt ? "prompt" : "caption");
    if (!text)
        return;
    if (!text[strspn(text, " \t\r\n")]) {
        snprintf(why, size, "the %s is empty", prompt ? "prompt" : "caption");
        return;
    }
    j->caption = caption != NULL;
    if (j->caption && strlen(text) > 65536) {
        snprintf(why, size, "the caption has %zu bytes, 65536 are the most", strlen(text));
        return;
    }
    if (model && !json_is_null(model) && (!json_is_string(model) || strcmp(json_string_value(model), sv.name))) {
        snprintf(why, size, "model: this server has '%s' alone", sv.name);
        return;
    }
    if (!number_in(o, "max_tokens", 1, 1e9, &most, why, size) || !number_in(o, "temperature", 0, 100, &temperature, why, size) ||
        !number_in(o, "top_p", 1e-6, 1, &top_p, why, size) || !number_in(o, "seed", -9e15, 9e15, &seed, why, size) ||
        !number_in(o, "n", 1, 1, &n, why, size))
        return;
    j->grammar = sv.s.grammar && (j->caption || (json_is_string(g) && !strcmp(json_string_value(g), "part21")));
    if (json_is_string(g) && !strcmp(json_string_value(g), "off"))
        j->grammar = false;
    else if (g && !json_is_null(g) && !(json_is_string(g) && !strcmp(json_string_value(g), "part21") && sv.s.grammar)) {
        snprintf(why, size, "grammar: part21 or off is due%s", sv.s.grammar ? "" : ", and this server has --grammar off");
        return;
    }
    for (size_t i = 0; stop && !json_is_null(stop) && i < (json_is_array(stop) ? json_array_size(stop) : 1); i++) {
        const json_t *s = json_is_array(stop) ? json_array_get(stop, i) : stop;
        if (!json_is_string(s) || !json_string_length(s) || json_string_length(s) > 200 || i == ARRAY_LEN(j->stop)) {
            snprintf(why, size, "stop: up to four strings of 1 to 200 bytes are due");
            return;
        }
        j->stop[j->n_stop++] = xstrdup(json_string_value(s));
    }
    j->prompt = xstrdup(text);
    j->stream = json_is_true(json_object_get(o, "stream"));
    j->max_new = most < (double)max_tokens ? (int64_t)most : max_tokens;
    j->sampling = (struct engine_sampling){.temperature = temperature, .top_p = top_p, .seed = (uint64_t)(int64_t)seed};
}

static enum MHD_Result take_request(struct MHD_Connection *c, struct call *call)
{
    char why[300];
    json_t *o = NULL;
    const char *type = MHD_lookup_connection_value(c, MHD_HEADER_KIND, "Content-Type");
    if (call->too_big)
        return send_error(c, 413, "the body is over %lld bytes", (long long)max_body);
    /* Another site's page can post forms here, but not this type. */
    if (!type || strncasecmp(type, "application/json", 16))
        return send_error(c, 415, "Content-Type: application/json is due");
    if (json_read_mem("body", call->body.s, call->body.n, &o) < 0)
        return send_error(c, 400, "%s", err_text());
    struct job *j = xcalloc(1, sizeof *j);
    j->out = j->text = BUF_INIT;
    read_request(o, j, why, sizeof why);
    json_decref(o);
    pthread_mutex_lock(&sv.lock);
    int status = *why ? 400 : sv.stopping ? 503 : sv.n_jobs >= batch + max_waiting ? 429 : 0;
    if (status) {
        sv.n_refused++;
        j->refs = 1;
        if ((j->next = sv.jobs))
            sv.jobs->prev = j;
        sv.jobs = j;
        job_unref(j);
        pthread_mutex_unlock(&sv.lock);
        return send_error(c, status, "%s", *why ? why : status == 503 ? "the server is stopping" : "too many requests are waiting: try again later");
    }
    snprintf(j->id, sizeof j->id, "cmpl-%llx-%lld", (unsigned long long)wall_clock_s(), (long long)++sv.last_id);
    j->created = wall_clock_s();
    j->refs = 2;
    j->conn = c;
    call->job = j;
    if ((j->next = sv.jobs))
        sv.jobs->prev = j;
    sv.jobs = j;
    sv.n_jobs++;
    *sv.last = j;
    sv.last = &j->queued;
    j->suspended = true;
    MHD_suspend_connection(c);
    pthread_cond_signal(&sv.wake);
    pthread_mutex_unlock(&sv.lock);
    return MHD_YES;
}

static ssize_t read_stream(void *cls, uint64_t pos, char *to, size_t max)
{
    struct job *j = cls;
    ssize_t n = 0;
    (void)pos;
    pthread_mutex_lock(&sv.lock);
    if (j->cancelled) {
        n = MHD_CONTENT_READER_END_WITH_ERROR;
    } else if (j->out.n > j->sent) {
        n = (ssize_t)(j->out.n - j->sent < max ? j->out.n - j->sent : max);
        memcpy(to, j->out.s + j->sent, (size_t)n);
        j->sent += (size_t)n;
        if (j->sent == j->out.n) {
            j->sent = 0;
            buf_clear(&j->out);
        }
    } else if (j->state == DONE || sv.ending) {
        n = MHD_CONTENT_READER_END_OF_STREAM;
    } else {
        j->suspended = true;
        MHD_suspend_connection(j->conn);
    }
    pthread_mutex_unlock(&sv.lock);
    return n;
}

/* A job's connection was resumed ahead of its answer. */
static enum MHD_Result answer_job(struct MHD_Connection *c, struct job *j)
{
    struct MHD_Response *r;
    enum MHD_Result ok = MHD_YES;
    pthread_mutex_lock(&sv.lock);
    if (j->state == REFUSED) {
        ok = send_bytes(c, j->status, "application/json", j->out.s, j->out.n);
    } else if (j->stream) {
        if ((r = MHD_create_response_from_callback(MHD_SIZE_UNKNOWN, 16384, read_stream, j, NULL))) {
            MHD_add_response_header(r, "Content-Type", "text/event-stream");
            MHD_add_response_header(r, "Cache-Control", "no-store");
            MHD_add_response_header(r, "X-Content-Type-Options", "nosniff");
            ok = MHD_queue_response(c, 200, r);
            MHD_destroy_response(r);
        } else {
            ok = MHD_NO;
        }
    } else if (j->state == DONE) {
        ok = send_bytes(c, 200, "application/json", j->out.s, j->out.n);
    } else if (sv.ending) {
        ok = MHD_NO;
    } else { /* resumed for nothing */
        j->suspended = true;
        MHD_suspend_connection(c);
    }
    pthread_mutex_unlock(&sv.lock);
    return ok;
}

/* On the loopback interface only who means this machine is answered: a page elsewhere whose name was made to
 * lead here (DNS rebinding) says another host. */
static bool meant_for_us(struct MHD_Connection *c)
{
    const char *h = MHD_lookup_connection_value(c, MHD_HEADER_KIND, "Host");
    if (strcmp(host, "127.0.0.1") && strcmp(host, "::1"))
        return true;
    static const char *const names[] = {"127.0.0.1", "localhost", "[::1]"};
    for (size_t i = 0; h && i < ARRAY_LEN(names); i++) {
        size_t n = strlen(names[i]);
        if (!strncasecmp(h, names[i], n) && (!h[n] || h[n] == ':'))
            return true;
    }
    return !h;
}

static enum MHD_Result on_request(void *cls, struct MHD_Connection *c, const char *url, const char *method, const char *version,
                                  const char *upload, size_t *upload_n, void **con_cls)
{
    struct call *call = *con_cls;
    (void)cls;
    (void)version;
    if (!call) {
        *con_cls = call = xcalloc(1, sizeof *call);
        buf_init(&call->body);
        return MHD_YES;
    }
    if (*upload_n) {
        if (call->body.n + *upload_n > (size_t)max_body)
            call->too_big = true; /* read to its end, but not kept: the client shall see the answer */
        else
            buf_add(&call->body, upload, *upload_n);
        *upload_n = 0;
        return MHD_YES;
    }
    if (call->job)
        return answer_job(c, call->job);
    bool get = !strcmp(method, "GET") || !strcmp(method, "HEAD"), post = !strcmp(method, "POST");
    if (!meant_for_us(c))
        return send_error(c, 403, "this server answers to localhost alone");
    if (!get && !post)
        return send_error(c, 405, "%s is not understood", method);
    if (post)
        return strcmp(url, "/v1/completions") ? send_error(c, 404, "no such address") : take_request(c, call);
    if (!strcmp(url, "/"))
        return send_page(c);
    if (!strcmp(url, "/health"))
        return send_health(c);
    if (!strcmp(url, "/v1/models"))
        return send_models(c);
    if (!strncmp(url, "/parts/", 7))
        return send_part(c, url + 7);
    return send_error(c, 404, "no such address");
}

static void on_completed(void *cls, struct MHD_Connection *c, void **con_cls, enum MHD_RequestTerminationCode why)
{
    struct call *call = *con_cls;
    (void)cls;
    (void)c;
    (void)why;
    if (!call)
        return;
    if (call->job) {
        pthread_mutex_lock(&sv.lock);
        struct job *j = call->job;
        j->conn = NULL;
        j->suspended = false;
        if (j->state < REFUSED)
            j->cancelled = true; /* the client went away */
        job_unref(j);
        pthread_cond_signal(&sv.wake);
        pthread_mutex_unlock(&sv.lock);
    }
    buf_release(&call->body);
    free(call);
    *con_cls = NULL;
}

static void on_http_error(void *cls, const char *fmt, va_list ap)
{
    (void)cls;
    (void)fmt;
    (void)ap; /* clients that go away: nothing to tell */
}

/* As many connections as descriptors allow, the answer "too many" included. */
static unsigned connection_limit(void)
{
    struct rlimit r = {0};
    getrlimit(RLIMIT_NOFILE, &r);
    r.rlim_cur = r.rlim_max < 65536 ? r.rlim_max : 65536;
    setrlimit(RLIMIT_NOFILE, &r);
    return r.rlim_cur > 4096 ? 4000 : (unsigned)(r.rlim_cur > 80 ? r.rlim_cur - 64 : 16);
}

static int open_http(void)
{
    struct sockaddr_in a4 = {.sin_family = AF_INET, .sin_port = htons((uint16_t)port)};
    struct sockaddr_in6 a6 = {.sin6_family = AF_INET6, .sin6_port = htons((uint16_t)port)};
    bool v6 = strchr(host, ':') != NULL;
    if (v6 ? inet_pton(AF_INET6, host, &a6.sin6_addr) != 1 : inet_pton(AF_INET, strcmp(host, "localhost") ? host : "127.0.0.1", &a4.sin_addr) != 1)
        return err_set(ERR_USAGE, "--host %s: an IP address is due, as 127.0.0.1 or 0.0.0.0", host);
    unsigned flags = MHD_USE_EPOLL_INTERNAL_THREAD | MHD_ALLOW_SUSPEND_RESUME | MHD_USE_ITC | MHD_USE_ERROR_LOG | (v6 ? MHD_USE_IPv6 : 0);
    sv.http = MHD_start_daemon(flags, (uint16_t)port, NULL, NULL, on_request, NULL, MHD_OPTION_EXTERNAL_LOGGER, on_http_error, NULL,
                               MHD_OPTION_SOCK_ADDR, v6 ? (struct sockaddr *)&a6 : (struct sockaddr *)&a4, MHD_OPTION_NOTIFY_COMPLETED, on_completed, NULL,
                               MHD_OPTION_CONNECTION_LIMIT, connection_limit(), MHD_OPTION_CONNECTION_TIMEOUT, 30u,
                               MHD_OPTION_LISTEN_BACKLOG_SIZE, 2048u, MHD_OPTION_CONNECTION_MEMORY_LIMIT, (size_t)32768, MHD_OPTION_END);
    if (!sv.http)
        return err_set(ERR_IO, "cannot listen on %s port %lld: %s", host, (long long)port, errno ? strerror(errno) : "in use?");
    const union MHD_DaemonInfo *i = MHD_get_daemon_info(sv.http, MHD_DAEMON_INFO_BIND_PORT);
    if (i)
        port = i->port;
    return ERR_OK;
}

static int serve(void)
{
    pthread_t drawer;
    bool drawing = false;
    int64_t most = sv.s.m->cfg.max_positions;
    max_tokens = max_tokens < most ? max_tokens : most;
    struct engine_options o = {.max_batch = batch, .max_tokens = max_tokens, .vocab = tok_n_ids(sv.s.tok), .threads = use.threads};
    int rc = engine_new(sv.s.m, &o, &sv.e);
    if (rc < 0)
        return rc == ERR_NOMEM ? err_wrap("%lld sequences of %lld tokens: lower --batch or --max-tokens", (long long)batch, (long long)max_tokens) : rc;
    if (!(sv.folder = temp_dir("step-llm-serve")))
        return ERR_IO;
    sv.parts = xcalloc((size_t)keep, sizeof *sv.parts);
    sv.draws = sibling_there("step-render");
    signal(SIGPIPE, SIG_IGN);
    if ((rc = open_http()) < 0)
        goto out;
    drawing = pthread_create(&drawer, NULL, draw_parts, NULL) == 0;
    struct engine_info info;
    engine_info(sv.e, &info);
    log_note("%s, %s: %lld places of %lld tokens; pictures %s; Ctrl-C ends it", sv.name, info.way, (long long)batch, (long long)max_tokens,
             sv.draws ? "by step-render" : "off: there is no step-render");
    printf("http://%s%s%s:%lld/\n", strchr(host, ':') ? "[" : "", host, strchr(host, ':') ? "]" : "", (long long)port);
    fflush(stdout);
    rc = work(&o);
out:
    /* Nothing may be suspended when the library ends; what it still has to send it sends for a moment. */
    pthread_mutex_lock(&sv.lock);
    sv.stopping = sv.ending = true;
    for (struct job *j = sv.jobs, *next; j; j = next) {
        next = j->next;
        if (j->state < REFUSED) { /* after an error alone: the engine will say no more */
            refuse(j, 503, "the server is stopping");
            job_unref(j);
        } else {
            resume(j);
        }
    }
    pthread_cond_signal(&sv.draw);
    pthread_mutex_unlock(&sv.lock);
    for (int i = 0; sv.http && i < 20; i++) {
        pthread_mutex_lock(&sv.lock);
        bool idle = !sv.jobs;
        pthread_mutex_unlock(&sv.lock);
        if (idle)
            break;
        usleep(50000);
    }
    if (sv.http)
        MHD_stop_daemon(sv.http);
    if (drawing)
        pthread_join(drawer, NULL);
    engine_free(sv.e);
    for (int64_t i = 0; i < keep; i++)
        if (sv.parts[i]) {
            answer_release(&sv.parts[i]->answer);
            buf_release(&sv.parts[i]->glb);
            buf_release(&sv.parts[i]->png);
            free(sv.parts[i]->why);
            free(sv.parts[i]);
        }
    free(sv.parts);
    remove_tree(sv.folder);
    free(sv.folder);
    log_note("%lld requests served, %lld refused, %lld cancelled", (long long)sv.n_served, (long long)sv.n_refused, (long long)sv.n_cancelled);
    return rc;
}

int main(int argc, char **argv)
{
    struct tool t;
    tool_start(&t, &spec, argc, argv);
    sv.t = &t;
    use.threads = t.threads;
    int rc = session_check(&use, &sv.s);
    if (rc == ERR_OK)
        rc = session_check_prompt(&use, &sv.s, use.rag != NULL, "a caption");
    if (rc == ERR_OK)
        rc = session_open(&use, &sv.s);
    if (rc == ERR_OK) {
        char *of = xstrdup(use.adapter ? use.adapter : use.model);
        for (size_t n = strlen(of); n > 1 && of[n - 1] == '/';)
            of[--n] = 0;
        snprintf(sv.name, sizeof sv.name, "%s", path_basename(of));
        free(of);
        rc = tool_begin(&t);
    }
    if (rc == ERR_OK)
        rc = serve();
    int code = tool_finish(&t, rc);
    session_close(&sv.s);
    return code;
}
