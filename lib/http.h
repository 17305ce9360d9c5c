/* http.h: HTTP(S) over libcurl: small requests into memory, files onto the disk.
 *
 *     struct http *h = http_new(&(struct http_opts){.token = getenv("HF_TOKEN")});
 *     struct http_file f = {.url = url, .path = "a.7z", .sha256 = sum};
 *     rc = http_download(h, &f);
 *     http_free(h);
 *
 * One handle a thread; it keeps its connections open.
 *
 * Whatever may pass (no connection, a connection dropped or stalled, 408, 425, 429, 500,
 * 502, 503, 504) is tried again, after a wait that doubles, or that the server asked for with
 * Retry-After.  The count of tries starts anew whenever new bytes arrived, so a line that keeps
 * breaking still ends a long download.  Redirects are followed, never from https to http; the
 * token goes only to the host asked.  Proxies are taken from the environment as curl does;
 * CURL_CA_BUNDLE or SSL_CERT_FILE names the certificates to trust, if not the system's.
 * stop_requested() ends a transfer within a second: ERR_CANCELLED.
 */
#ifndef LIB_HTTP_H
#define LIB_HTTP_H

#include <stdbool.h>
#include <stdint.h>

#include "lib/mem.h"

struct http_opts {
    const char *token;         /* sent as "Authorization: Bearer"; never shown */
    double connect_s;          /* 0: 30 */
    double stall_s;            /* a transfer that brings nothing for so long is broken off; 0: 60 */
    int tries;                 /* in a row without a new byte; 0: 6 */
    double backoff_s;          /* before the second try, then doubled up to a minute; 0: 1 */
};

struct http;
struct http *http_new(const struct http_opts *opts);
void http_free(struct http *h); /* NULL is fine */

/* What the server said last.  Borrowed until the handle's next request. */
struct http_reply {
    int status;             /* 0: no answer */
    const char *error_code; /* X-Error-Code and X-Error-Message, as hubs send; "" if none */
    const char *error_text;
    bool disk;              /* not the network: the file could not be written here */
};
struct http_reply http_last(const struct http *h);

/* The body, of at most max_bytes, in out (emptied first).  ERR_IO for no answer and for a
 * status other than 2xx; http_last() tells them apart, and the text has the start of a
 * short textual body.  ERR_NOMEM: too big. */
int http_get(struct http *h, const char *url, size_t max_bytes, struct buf *out);
/* Likewise, sending a body. */
int http_post(struct http *h, const char *url, const char *content_type, const void *body, size_t n, size_t max_bytes,
              struct buf *out);

struct http_file {
    const char *url;
    const char *path;       /* appears only whole and checked; meanwhile PATH.incomplete, and
                               PATH.incomplete.tag, which says of what it is a part */
    int64_t size;           /* in bytes, if known; else -1 */
    const char *sha256;     /* 64 hexadecimal digits; NULL if unknown */
    const char *md5;        /* 32 digits, where a publisher gives no more; NULL if unknown */
    const char *git_sha1;   /* git's object id (SHA-1 of "blob SIZE\0" and the content); NULL if unknown */
    const char *magic;      /* the bytes it must begin with; NULL: any */
    size_t n_magic;
    uint64_t max_bytes;     /* 0: any size */
    void (*progress)(void *ctx, int64_t new_bytes, int64_t total); /* total: -1 if unknown */
    void *ctx;
};
/* Brings the file, going on where PATH.incomplete ends if that is a part of the same thing: by
 * ETag or date where the server has them, in any case by size and checksum.  A checksum
 * that fails after resuming is given one more chance from the start.  A PATH that is there
 * already and has the right checksum is left as it is.
 * ERR_IO: could not be had (http_last()); ERR_FORMAT: it is not what was asked for: wrong
 * length, checksum or beginning, and nothing of it is kept; ERR_NOMEM: over max_bytes. */
int http_download(struct http *h, const struct http_file *f);

/* url less user name and password, for messages; the caller frees. */
char *http_shown_url(const char *url);
/* A path (UTF-8) as it stands in a URL: everything but unreserved characters and '/'
 * percent-encoded, into out. */
void http_put_path(struct buf *out, const char *path);

/* Whether these first bytes of a file are a web page's. */
bool http_is_page(const char *s, size_t n);

#endif
