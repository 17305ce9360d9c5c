#include "lib/http.h"

#include <curl/curl.h>
#include <errno.h>
#include <math.h>
#include <openssl/evp.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <strings.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "lib/err.h"
#include "lib/files.h"
#include "lib/log.h"
#include "lib/pool.h"

extern const char tool_version[];

enum { MAX_REDIRECTS = 10, MAX_WAIT_S = 60, MAX_RETRY_AFTER_S = 300 };

struct http {
    CURL *curl;
    struct http_opts opts;
    char text[CURL_ERROR_SIZE];
    /* of the response that is coming in */
    int status;
    char *error_code, *error_text, *etag, *modified, *type;
    double retry_after;
    int64_t range_start, range_total; /* of Content-Range; -1: none */
    /* where the body goes: memory, or a file */
    struct buf *out;
    size_t max;
    struct download *dl;
    bool disk;
    int rc; /* what the write callback failed with, text in `why` */
    char *why;
};

struct download {
    const struct http_file *f;
    char *part, *tag;
    FILE *file;
    int64_t have;     /* bytes in the file */
    int64_t asked_at; /* where the request in flight starts */
    int64_t total;    /* as the server says; -1: unknown */
    bool resumed;     /* some of it is from an earlier connection */
    bool started;     /* the body of this response began */
    bool got_new;
    bool wrong_range; /* the server sent another range than the one asked for */
    char head[64]; /* the first bytes */
};

static void global_init(void)
{
    curl_global_init(CURL_GLOBAL_DEFAULT);
}

static void set_field(char **field, const char *v, size_t n)
{
    free(*field);
    *field = xstrndup(v, n < 500 ? n : 500);
}

static void forget_reply(struct http *h)
{
    char **const fields[] = {&h->error_code, &h->error_text, &h->etag, &h->modified, &h->type};
    for (size_t i = 0; i < ARRAY_LEN(fields); i++) {
        free(*fields[i]);
        *fields[i] = NULL;
    }
    h->status = 0;
    h->retry_after = -1;
    h->range_start = h->range_total = -1;
}

/* If line is "NAME: value", sets v and n to the value. */
static bool field_is(const char *line, size_t len, const char *name, const char **v, size_t *n)
{
    size_t k = strlen(name);
    if (len <= k || line[k] != ':' || strncasecmp(line, name, k))
        return false;
    const char *s = line + k + 1, *e = line + len;
    while (s < e && (*s == ' ' || *s == '\t'))
        s++;
    while (e > s && (e[-1] == '\r' || e[-1] == '\n' || e[-1] == ' '))
        e--;
    *v = s;
    *n = (size_t)(e - s);
    return true;
}

static size_t on_header(char *line, size_t size, size_t count, void *ctx)
{
    struct http *h = ctx;
    size_t len = size * count, n;
    const char *v;

    if (len > 9 && !strncasecmp(line, "HTTP/", 5)) { /* a redirect's headers are not the answer's */
        forget_reply(h);
        const char *sp = memchr(line, ' ', len);
        h->status = sp ? atoi(sp + 1) : 0;
    } else if (field_is(line, len, "etag", &v, &n)) {
        set_field(&h->etag, v, n);
    } else if (field_is(line, len, "last-modified", &v, &n)) {
        set_field(&h->modified, v, n);
    } else if (field_is(line, len, "content-type", &v, &n)) {
        set_field(&h->type, v, n);
    } else if (field_is(line, len, "x-error-code", &v, &n)) {
        set_field(&h->error_code, v, n);
    } else if (field_is(line, len, "x-error-message", &v, &n)) {
        set_field(&h->error_text, v, n);
    } else if (field_is(line, len, "retry-after", &v, &n)) {
        char *s = xstrndup(v, n), *end;
        double wait = strtod(s, &end);
        if (end == s) { /* a date */
            time_t t = curl_getdate(s, NULL);
            wait = t == (time_t)-1 ? -1 : difftime(t, time(NULL));
        }
        h->retry_after = wait;
        free(s);
    } else if (field_is(line, len, "content-range", &v, &n)) {
        char *s = xstrndup(v, n), *slash = strchr(s, '/');
        long long start;
        if (sscanf(s, "bytes %lld-", &start) == 1)
            h->range_start = start;
        if (slash && slash[1] != '*')
            h->range_total = atoll(slash + 1);
        free(s);
    }
    return len;
}

static int disk_error(struct http *h, const char *path)
{
    h->disk = true;
    return err_set(ERR_IO, "%s: %s", path, strerror(errno));
}

/* Ends the transfer from within a callback. */
static size_t refuse(struct http *h)
{
    h->rc = err_code();
    free(h->why);
    h->why = xstrdup(err_text());
    return 0;
}

bool http_is_page(const char *s, size_t n)
{
    while (n && (*s == ' ' || *s == '\n' || *s == '\r' || *s == '\t'))
        s++, n--;
    return (n >= 5 && !strncasecmp(s, "<html", 5)) || (n >= 9 && !strncasecmp(s, "<!doctype", 9)) ||
           (n >= 5 && !strncasecmp(s, "<?xml", 5));
}

static int check_magic(const struct download *d)
{
    const struct http_file *f = d->f;
    size_t n = d->have < (int64_t)sizeof d->head ? (size_t)d->have : sizeof d->head;
    if (!f->magic || n < f->n_magic || !memcmp(d->head, f->magic, f->n_magic))
        return ERR_OK;
    char *url = http_shown_url(f->url);
    int rc = err_set(ERR_FORMAT, "%s: %s came instead of the file (it begins otherwise)", url,
                     http_is_page(d->head, n) ? "a web page" : "something else");
    free(url);
    return rc;
}

/* Starts the file over. */
static int truncate_part(struct http *h, struct download *d)
{
    if (fflush(d->file) || ftruncate(fileno(d->file), 0) || fseeko(d->file, 0, SEEK_SET))
        return disk_error(h, d->part);
    d->have = 0;
    d->resumed = false;
    return ERR_OK;
}

/* The first bytes of a 200 or 206: where do they belong? */
static int begin_body(struct http *h, struct download *d)
{
    int rc = ERR_OK;
    curl_off_t length = -1;
    curl_easy_getinfo(h->curl, CURLINFO_CONTENT_LENGTH_DOWNLOAD_T, &length);
    d->started = true;
    if (h->status == 206) {
        if ((d->wrong_range = h->range_start != d->asked_at))
            return err_set(ERR_IO, "the server sent bytes from %lld, not from %lld as asked", (long long)h->range_start,
                           (long long)d->asked_at);
        d->total = h->range_total >= 0 ? h->range_total : length >= 0 ? d->asked_at + length : -1;
    } else {
        if (d->have && (rc = truncate_part(h, d)) < 0)
            return rc;
        d->total = length;
    }
    if (d->f->size >= 0 && d->total >= 0 && d->total != d->f->size)
        return err_set(ERR_FORMAT, "is %lld bytes long there, and should be %lld", (long long)d->total,
                       (long long)d->f->size);
    if (d->f->max_bytes && d->total > 0 && (uint64_t)d->total > d->f->max_bytes)
        return err_set(ERR_NOMEM, "is %lld bytes long, over the limit of %llu", (long long)d->total,
                       (unsigned long long)d->f->max_bytes);
    /* What the part is a part of, for the next start. */
    struct buf b = BUF_INIT;
    buf_printf(&b, "%s\n%s\n%s\n", d->f->url, h->etag ? h->etag : "", h->modified ? h->modified : "");
    rc = file_write(d->tag, b.s, b.n, false);
    buf_release(&b);
    return rc;
}

static size_t on_body(char *p, size_t size, size_t count, void *ctx)
{
    struct http *h = ctx;
    struct download *d = h->dl;
    size_t n = size * count;

    if (!d || h->status < 200 || h->status > 299) { /* an answer, or an error's text */
        size_t max = h->status >= 200 && h->status < 300 ? h->max : 64 << 10;
        if (h->out->n + n > max) {
            if (h->status < 200 || h->status > 299)
                return n; /* the rest of an error page */
            err_set(ERR_NOMEM, "the answer is over %zu bytes long", max);
            return refuse(h);
        }
        buf_add(h->out, p, n);
        return n;
    }
    if (!d->started && begin_body(h, d) < 0)
        return refuse(h);
    int64_t limit = d->f->size >= 0 ? d->f->size : d->total;
    if (limit >= 0 && d->have + (int64_t)n > limit) {
        err_set(ERR_FORMAT, "goes on after the %lld bytes it should have", (long long)limit);
        return refuse(h);
    }
    if (d->f->max_bytes && (uint64_t)d->have + n > d->f->max_bytes) {
        err_set(ERR_NOMEM, "is over the limit of %llu bytes", (unsigned long long)d->f->max_bytes);
        return refuse(h);
    }
    if (fwrite(p, 1, n, d->file) != n) {
        disk_error(h, d->part);
        return refuse(h);
    }
    if (d->have < (int64_t)sizeof d->head) {
        size_t room = sizeof d->head - (size_t)d->have;
        memcpy(d->head + d->have, p, n < room ? n : room);
    }
    d->have += (int64_t)n;
    d->got_new = true;
    if (check_magic(d) < 0)
        return refuse(h);
    if (d->f->progress)
        d->f->progress(d->f->ctx, (int64_t)n, limit);
    return n;
}

static int on_tick(void *ctx, curl_off_t a, curl_off_t b, curl_off_t c, curl_off_t d)
{
    (void)ctx, (void)a, (void)b, (void)c, (void)d;
    return stop_requested();
}

struct http *http_new(const struct http_opts *opts)
{
    static pthread_once_t once = PTHREAD_ONCE_INIT;
    pthread_once(&once, global_init);
    struct http *h = xcalloc(1, sizeof *h);
    h->opts = *opts;
    if (h->opts.connect_s <= 0)
        h->opts.connect_s = 30;
    if (h->opts.stall_s <= 0)
        h->opts.stall_s = 60;
    if (h->opts.tries <= 0)
        h->opts.tries = 6;
    if (h->opts.backoff_s <= 0)
        h->opts.backoff_s = 1;
    h->curl = curl_easy_init();
    forget_reply(h);
    return h;
}

void http_free(struct http *h)
{
    if (!h)
        return;
    forget_reply(h);
    curl_easy_cleanup(h->curl);
    free(h->why);
    free(h);
}

struct http_reply http_last(const struct http *h)
{
    return (struct http_reply){.status = h->status,
                               .error_code = h->error_code ? h->error_code : "",
                               .error_text = h->error_text ? h->error_text : "",
                               .disk = h->disk};
}

char *http_shown_url(const char *url)
{
    const char *host = strstr(url, "://");
    host = host ? host + 3 : url;
    size_t authority = strcspn(host, "/?#");
    const char *at = NULL;
    for (const char *p = host; p < host + authority; p++)
        if (*p == '@')
            at = p;
    return at ? xasprintf("%.*s%s", (int)(host - url), url, at + 1) : xstrdup(url);
}

void http_put_path(struct buf *out, const char *path)
{
    for (; *path; path++) {
        unsigned char c = (unsigned char)*path;
        if ((c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || strchr("-._~/", c))
            buf_putc(out, (char)c);
        else
            buf_printf(out, "%%%02X", c);
    }
}

static void prepare(struct http *h, const char *url)
{
    CURL *c = h->curl;
    bool https = !strncasecmp(url, "https:", 6);
    const char *ca = getenv("CURL_CA_BUNDLE");
    char agent[64];

    curl_easy_reset(c); /* options; connections stay */
    snprintf(agent, sizeof agent, "step-llm/%s", tool_version);
    curl_easy_setopt(c, CURLOPT_URL, url);
    curl_easy_setopt(c, CURLOPT_USERAGENT, agent);
    curl_easy_setopt(c, CURLOPT_ERRORBUFFER, h->text);
    curl_easy_setopt(c, CURLOPT_NOSIGNAL, 1L);
    curl_easy_setopt(c, CURLOPT_PROTOCOLS_STR, "http,https");
    curl_easy_setopt(c, CURLOPT_REDIR_PROTOCOLS_STR, https ? "https" : "http,https");
    curl_easy_setopt(c, CURLOPT_FOLLOWLOCATION, 1L);
    curl_easy_setopt(c, CURLOPT_MAXREDIRS, (long)MAX_REDIRECTS);
    curl_easy_setopt(c, CURLOPT_CONNECTTIMEOUT_MS, (long)(h->opts.connect_s * 1e3));
    curl_easy_setopt(c, CURLOPT_LOW_SPEED_LIMIT, 1L);
    curl_easy_setopt(c, CURLOPT_LOW_SPEED_TIME, (long)ceil(h->opts.stall_s));
    curl_easy_setopt(c, CURLOPT_HEADERFUNCTION, on_header);
    curl_easy_setopt(c, CURLOPT_HEADERDATA, h);
    curl_easy_setopt(c, CURLOPT_WRITEFUNCTION, on_body);
    curl_easy_setopt(c, CURLOPT_WRITEDATA, h);
    curl_easy_setopt(c, CURLOPT_XFERINFOFUNCTION, on_tick);
    curl_easy_setopt(c, CURLOPT_NOPROGRESS, 0L);
    if (!ca || !*ca)
        ca = getenv("SSL_CERT_FILE");
    if (ca && *ca)
        curl_easy_setopt(c, CURLOPT_CAINFO, ca);
    if (h->opts.token && *h->opts.token) {
        curl_easy_setopt(c, CURLOPT_XOAUTH2_BEARER, h->opts.token);
        curl_easy_setopt(c, CURLOPT_HTTPAUTH, (long)CURLAUTH_BEARER);
    }
    forget_reply(h);
    h->text[0] = 0;
    h->rc = ERR_OK;
}

static bool may_pass(int status)
{
    return status == 408 || status == 425 || status == 429 || status == 500 || status == 502 || status == 503 ||
           status == 504;
}

/* One exchange: ERR_OK, or the error; *again: worth another try. */
static int perform(struct http *h, const char *url, bool *again)
{
    CURLcode cc = curl_easy_perform(h->curl);
    *again = false;
    if (stop_requested())
        return err_set(ERR_CANCELLED, "stopped");
    char *shown = http_shown_url(url);
    int rc = ERR_OK;
    if (h->rc < 0) {
        rc = err_set(h->rc, "%s%s%s", strstr(h->why, shown) ? "" : shown, strstr(h->why, shown) ? "" : ": ", h->why);
    } else if (cc != CURLE_OK) {
        *again = cc != CURLE_UNSUPPORTED_PROTOCOL && cc != CURLE_URL_MALFORMAT && cc != CURLE_TOO_MANY_REDIRECTS &&
                 cc != CURLE_PEER_FAILED_VERIFICATION && cc != CURLE_SSL_CACERT_BADFILE;
        rc = err_set(ERR_IO, "%s: %s", shown, h->text[0] ? h->text : curl_easy_strerror(cc));
    } else if (h->status < 200 || h->status > 299) {
        *again = may_pass(h->status);
        rc = err_set(ERR_IO, "%s: HTTP status %d%s%s", shown, h->status, h->error_text ? ": " : "",
                     h->error_text ? h->error_text : "");
    }
    free(shown);
    return rc;
}

/* Waits before try number `fails` + 1; ERR_CANCELLED if told to stop meanwhile. */
static int back_off(struct http *h, int fails)
{
    double wait = h->opts.backoff_s * pow(2, fails - 1);
    if (wait > MAX_WAIT_S)
        wait = MAX_WAIT_S;
    if (h->retry_after >= 0)
        wait = h->retry_after < MAX_RETRY_AFTER_S ? h->retry_after : MAX_RETRY_AFTER_S;
    else /* many clients cut off together should not come back together */
        wait *= 0.75 + 0.5 * (double)(fnv1a(FNV_INIT, &h, sizeof h) % 1000 + (uint64_t)(now_s() * 1e6) % 1000) / 2000;
    for (double end = now_s() + wait; now_s() < end;) {
        if (stop_requested())
            return err_set(ERR_CANCELLED, "stopped");
        usleep(20000);
    }
    return ERR_OK;
}

/* The start of an error's body, if it is text for people. */
static void add_body_text(const struct http *h, const struct buf *body)
{
    size_t n = body->n < 300 ? body->n : 300;
    if (h->status < 300 || !n || http_is_page(body->s, n) || memchr(body->s, 0, n))
        return;
    char text[301];
    memcpy(text, body->s, n);
    text[n] = 0;
    for (char *p = text; *p; p++)
        if ((unsigned char)*p < 32)
            *p = ' ';
    err_set(err_code(), "%s: %s", err_text(), text);
}

static int exchange(struct http *h, const char *url, const char *content_type, const void *body, size_t n, size_t max,
                    struct buf *out)
{
    struct curl_slist *headers = NULL;
    bool again;
    int rc, fails = 0;

    if (content_type) {
        char *line = xasprintf("Content-Type: %s", content_type);
        headers = curl_slist_append(headers, line);
        headers = curl_slist_append(headers, "Expect:"); /* no round trip ahead of the body */
        free(line);
    }
    h->out = out;
    h->max = max;
    h->dl = NULL;
    for (;;) {
        prepare(h, url);
        buf_clear(out);
        curl_easy_setopt(h->curl, CURLOPT_ACCEPT_ENCODING, "");
        if (content_type) {
            curl_easy_setopt(h->curl, CURLOPT_POST, 1L);
            curl_easy_setopt(h->curl, CURLOPT_POSTFIELDSIZE_LARGE, (curl_off_t)n);
            curl_easy_setopt(h->curl, CURLOPT_POSTFIELDS, body);
            curl_easy_setopt(h->curl, CURLOPT_HTTPHEADER, headers);
        }
        rc = perform(h, url, &again);
        if (rc == ERR_IO && h->status)
            add_body_text(h, out);
        if (rc == ERR_OK || !again || ++fails >= h->opts.tries)
            break;
        char *why = xstrdup(err_text());
        if (back_off(h, fails) < 0) {
            rc = ERR_CANCELLED;
            free(why);
            break;
        }
        free(why);
    }
    curl_slist_free_all(headers);
    return rc;
}

int http_get(struct http *h, const char *url, size_t max_bytes, struct buf *out)
{
    return exchange(h, url, NULL, NULL, 0, max_bytes, out);
}

int http_post(struct http *h, const char *url, const char *content_type, const void *body, size_t n, size_t max_bytes,
              struct buf *out)
{
    return exchange(h, url, content_type, body, n, max_bytes, out);
}

/* ---- downloads ---- */

static bool can_check(const struct http_file *f)
{
    return f->sha256 || f->md5 || f->git_sha1;
}

static void drop_part(struct download *d)
{
    unlink(d->part);
    unlink(d->tag);
}

/* The validator that an earlier start noted for this URL, for If-Range: fresh memory, or
 * NULL when there is none (then only size and checksum can tell). *same: the part is of this URL. */
static char *noted_validator(const struct download *d, bool *same)
{
    struct file_map m;
    *same = false;
    if (file_map(d->tag, 64 << 10, &m) < 0)
        return NULL;
    char *copy = xstrndup(m.data, m.size), *found = NULL, *save = copy;
    file_unmap(&m);
    const char *url = strsep(&save, "\n"), *etag = strsep(&save, "\n"), *date = strsep(&save, "\n");
    *same = url && !strcmp(url, d->f->url);
    if (etag && *etag && strncmp(etag, "W/", 2))
        found = xstrdup(etag); /* a weak tag is no promise about bytes */
    else if (date && *date)
        found = xstrdup(date);
    free(copy);
    return found;
}

static int open_part(struct http *h, struct download *d)
{
    struct stat st;
    if (!(d->file = fopen(d->part, "a+b")))
        return disk_error(h, d->part);
    if (flock(fileno(d->file), LOCK_EX | LOCK_NB))
        return err_set(ERR_IO, "%s: another process is bringing this file", d->part);
    if (fstat(fileno(d->file), &st))
        return disk_error(h, d->part);
    d->have = st.st_size;
    if (d->have && pread(fileno(d->file), d->head, sizeof d->head, 0) < 0)
        return disk_error(h, d->part);
    return ERR_OK;
}

static int digest_is(const char *path, const EVP_MD *md, const char *prefix, size_t n_prefix, const char *want,
                     const char *what)
{
    char block[1 << 16], hex[2 * EVP_MAX_MD_SIZE + 1];
    unsigned char sum[EVP_MAX_MD_SIZE];
    unsigned n_sum = 0;
    FILE *f = fopen(path, "rb");
    if (!f)
        return err_set(ERR_IO, "%s: %s", path, strerror(errno));
    EVP_MD_CTX *c = EVP_MD_CTX_new();
    EVP_DigestInit_ex(c, md, NULL);
    EVP_DigestUpdate(c, prefix, n_prefix);
    for (size_t n; (n = fread(block, 1, sizeof block, f)) > 0;)
        EVP_DigestUpdate(c, block, n);
    bool bad = ferror(f);
    fclose(f);
    EVP_DigestFinal_ex(c, sum, &n_sum);
    EVP_MD_CTX_free(c);
    if (bad)
        return err_set(ERR_IO, "%s: cannot read back", path);
    for (unsigned i = 0; i < n_sum; i++)
        snprintf(hex + 2 * i, 3, "%02x", sum[i]);
    return strcasecmp(hex, want) ? err_set(ERR_FORMAT, "its %s is %s, and should be %s", what, hex, want) : ERR_OK;
}

/* Compares whatever sums are known. */
static int check_sums(const struct http_file *f, const char *path, int64_t size)
{
    char blob[40];
    int rc = ERR_OK;
    if (f->sha256)
        rc = digest_is(path, EVP_sha256(), "", 0, f->sha256, "SHA-256");
    if (rc == ERR_OK && f->md5)
        rc = digest_is(path, EVP_md5(), "", 0, f->md5, "MD5");
    if (rc == ERR_OK && f->git_sha1) {
        int n = snprintf(blob, sizeof blob, "blob %lld", (long long)size);
        rc = digest_is(path, EVP_sha1(), blob, (size_t)n + 1, f->git_sha1, "git object id");
    }
    return rc;
}

/* The whole file is there: is it the right one? */
static int check_whole(struct download *d)
{
    const struct http_file *f = d->f;
    int rc = ERR_OK;
    if (f->size >= 0 && d->have != f->size)
        rc = err_set(ERR_FORMAT, "is %lld bytes long, and should be %lld", (long long)d->have, (long long)f->size);
    else if (f->magic && d->have < (int64_t)f->n_magic)
        rc = err_set(ERR_FORMAT, "is only %lld bytes long", (long long)d->have);
    else if ((rc = check_magic(d)) < 0)
        return rc;
    if (rc == ERR_OK)
        rc = check_sums(f, d->part, d->have);
    if (rc < 0) {
        char *url = http_shown_url(f->url);
        rc = err_wrap("%s", url);
        free(url);
    }
    return rc;
}

/* One connection.  ERR_OK: the whole file is in the part. */
static int transfer(struct http *h, struct download *d, bool *again)
{
    struct buf error_page = BUF_INIT;
    struct curl_slist *headers = NULL;
    bool same;
    char *validator = noted_validator(d, &same), range[40];
    int rc;

    *again = false;
    /* Another URL's part (another mirror's) is gone on with only where the whole can be checked. */
    if (d->have && !same && !can_check(d->f) && (rc = truncate_part(h, d)) < 0)
        goto out;
    if (d->have && d->f->size >= 0 && d->have > d->f->size && (rc = truncate_part(h, d)) < 0)
        goto out;
    if (d->have && d->have == d->f->size) { /* was whole, but not yet checked, when it was stopped */
        d->resumed = true;
        rc = ERR_OK;
        goto out;
    }
    prepare(h, d->f->url);
    d->asked_at = d->have;
    d->started = d->wrong_range = false;
    d->total = -1;
    if (d->have) {
        d->resumed = true;
        snprintf(range, sizeof range, "%lld-", (long long)d->have);
        curl_easy_setopt(h->curl, CURLOPT_RANGE, range);
        if (validator && same) {
            char *line = xasprintf("If-Range: %s", validator);
            headers = curl_slist_append(headers, line);
            free(line);
            curl_easy_setopt(h->curl, CURLOPT_HTTPHEADER, headers);
        }
    }
    h->dl = d;
    h->out = &error_page;
    h->max = 0;
    rc = perform(h, d->f->url, again);
    h->dl = NULL;
    if (fflush(d->file) && rc == ERR_OK)
        rc = disk_error(h, d->part);
    if (rc == ERR_OK && !d->started) /* 200 and no body: an empty file */
        rc = d->have ? truncate_part(h, d) : ERR_OK;
    else if (rc == ERR_OK && d->total >= 0 && d->have < d->total) {
        rc = err_set(ERR_IO, "the connection ended after %lld of %lld bytes", (long long)d->have, (long long)d->total);
        *again = true;
    } else if (rc < 0 && h->status == 416 && d->asked_at) {
        /* Nothing after what we have: either that is all, or it is a part of something else. */
        if (h->range_total == d->have || (h->range_total < 0 && can_check(d->f)))
            rc = ERR_OK;
        else if ((rc = truncate_part(h, d)) == ERR_OK) {
            rc = err_set(ERR_IO, "the server has fewer bytes than are here; starting over");
            *again = true;
        }
    } else if (rc < 0 && d->wrong_range) { /* do without ranges */
        char *why = xstrdup(err_text());
        if (truncate_part(h, d) == ERR_OK) {
            err_set(ERR_IO, "%s", why);
            *again = true;
        }
        free(why);
    } else if (rc == ERR_IO && h->status >= 300 && !*again) {
        add_body_text(h, &error_page);
    }
out:
    curl_slist_free_all(headers);
    free(validator);
    buf_release(&error_page);
    return rc;
}

int http_download(struct http *h, const struct http_file *f)
{
    struct download d = {.f = f, .total = -1};
    bool again, second_chance = true;
    int fails = 0;
    uint64_t size;
    int64_t mtime;
    forget_reply(h);
    if (can_check(f) && path_exists(f->path) && file_stamp(f->path, &size, &mtime) == ERR_OK &&
        (f->size < 0 || (int64_t)size == f->size) && check_sums(f, f->path, (int64_t)size) == ERR_OK)
        return ERR_OK; /* has been brought before */
    char *dir = path_dirname(f->path);
    int rc = mkdir_p(dir);
    h->disk = rc < 0;
    free(dir);
    d.part = xasprintf("%s.incomplete", f->path);
    d.tag = xasprintf("%s.incomplete.tag", f->path);
    if (rc == ERR_OK)
        rc = open_part(h, &d);
    while (rc == ERR_OK) {
        d.got_new = false;
        rc = transfer(h, &d, &again);
        if (rc == ERR_OK) {
            rc = check_whole(&d);
            if (rc != ERR_FORMAT || !d.resumed || !second_chance)
                break;
            second_chance = false; /* perhaps the part was bad from before */
            rc = truncate_part(h, &d);
            continue;
        }
        fails = d.got_new ? 1 : fails + 1;
        if (!again || fails >= h->opts.tries)
            break;
        rc = back_off(h, fails);
    }
    if (d.file && fflush(d.file) == 0 && rc == ERR_OK)
        fsync(fileno(d.file));
    if (d.file && fclose(d.file) && rc == ERR_OK)
        rc = disk_error(h, d.part);
    if (rc == ERR_OK && rename(d.part, f->path))
        rc = disk_error(h, f->path);
    if (rc == ERR_OK)
        unlink(d.tag);
    else if (rc == ERR_FORMAT || rc == ERR_NOMEM || (d.file && !d.have))
        drop_part(&d); /* of no use to the next start */
    free(d.part);
    free(d.tag);
    return rc;
}
