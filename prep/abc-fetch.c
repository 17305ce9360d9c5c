/* abc-fetch: brings the chunks of the ABC dataset's STEP files (7-Zip archives of some
 * 10,000 models each) and unpacks the models that are wanted.
 *
 * A chunk is downloaded to OUT/.chunks (a 7-Zip archive has its directory at its end, so
 * it cannot be unpacked off the wire), unpacked entry by entry, and removed.  Chunks go in
 * parallel: while one is unpacked the next ones come in. */
#include <archive.h>
#include <archive_entry.h>
#include <ctype.h>
#include <errno.h>
#include <pthread.h>
#include <stdlib.h>
#include <unistd.h>

#include "lib/http.h"
#include "lib/tool.h"

/* Against archives made to fill disks: real chunks unpack to some 10 times their size. */
enum { MAX_RATIO = 300, RATIO_SLACK = 64 << 20, MAX_ENTRIES = 1000000 };

static const unsigned char MAGIC_7Z[] = {'7', 'z', 0xBC, 0xAF, 0x27, 0x1C};

static const char *chunks_wanted, *list_path = "datasets/abc-chunks.txt", *out_dir;
static struct opt_list mirrors;
static int64_t min_entities, max_entities, max_file = (int64_t)1 << 30;
static bool keep_archives;
static double backoff_s = 1;

static struct opt options[] = {
    {.name = "chunks", .type = OPT_STR, .value = &chunks_wanted, .arg = "LIST", .flags = OPT_REQUIRED,
     .help = "numbers and ranges, as in 0-9,12; or all"},
    {.name = "out", .type = OPT_STR, .value = &out_dir, .arg = "DIR", .flags = OPT_REQUIRED,
     .help = "where the models go, in the archives' own tree"},
    {.name = "list", .type = OPT_STR, .value = &list_path, .arg = "FILE|URL", .help = "list of chunks: 'URL NAME' lines"},
    {.name = "mirror", .type = OPT_LIST, .value = &mirrors, .arg = "URL", .flags = OPT_NO_KEY,
     .help = "tried ahead of the list's own; NAME is appended, or put for {name}; may be a folder"},
    {.name = "min-entities", .type = OPT_INT, .value = &min_entities, .arg = "N", .max = 1e12,
     .help = "leave out models with fewer entities"},
    {.name = "max-entities", .type = OPT_INT, .value = &max_entities, .arg = "N", .max = 1e12,
     .help = "leave out models with more (0: any)"},
    {.name = "max-file", .type = OPT_INT, .value = &max_file, .arg = "BYTES", .min = 1, .max = 1e15,
     .help = "fail models that are larger"},
    {.name = "keep-archives", .type = OPT_FLAG, .value = &keep_archives, .flags = OPT_NO_KEY,
     .help = "leave the archives in OUT/.chunks"},
    {.name = "backoff", .type = OPT_REAL, .value = &backoff_s, .arg = "SECONDS", .flags = OPT_NO_KEY, .min = 0.001,
     .max = 3600, .help = "wait before a second try; doubles from there"},
    {0},
};

static const struct tool_spec spec = {
    .name = "abc-fetch",
    .args = "--chunks 0-9 --out DIR",
    .summary = "Downloads chunks of the ABC dataset and unpacks the STEP models that are wanted.",
    .details = "A list has 'URL NAME' lines, as the dataset publishes them; what else a line may say is explained in\n"
               "datasets/abc-chunks.txt.  Started again after whatever ended it, it goes on in the middle of a chunk.\n"
               "\n"
               "  abc-fetch --chunks 0-3 --max-entities 500 --out datasets/abc\n"
               "  abc-fetch --chunks all --mirror https://mirror.example/abc --out datasets/abc -j 4\n",
    .options = options,
    .flags = TOOL_KEEP_DONE | TOOL_SHARDS,
};

/* ---- the list of chunks ---- */

struct chunk {
    int number;
    char *name;         /* "abc_0000_step_v00.7z" */
    struct opt_list at; /* URLs, in order */
    int64_t size;       /* -1: unknown */
    char *sha256, *md5; /* NULL: unknown */
    bool unverified;    /* nobody has seen that this entry works */
};

struct chunk_list {
    struct chunk *v;
    size_t n, cap;
};

static void list_put(struct opt_list *l, const char *s)
{
    ARRAY_GROW(l->v, l->cap, l->n + 1);
    l->v[l->n++] = s;
}

static bool is_url(const char *s)
{
    return !strncmp(s, "http://", 7) || !strncmp(s, "https://", 8);
}

/* "abc_0042_step_v00.7z" -> 42; -1 for a name that is none of a chunk, or no safe file name. */
static int chunk_number(const char *name)
{
    int number, end = 0;
    if (strlen(name) > 100 || strspn(name, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-.") != strlen(name))
        return -1;
    if (sscanf(name, "abc_%4d%n", &number, &end) != 1 || end != 8 || number < 0 || !isdigit((unsigned char)name[4]) ||
        (name[8] != '_' && name[8] != '.'))
        return -1;
    return number;
}

static struct chunk *chunk_named(struct chunk_list *l, const char *name, int number)
{
    for (size_t i = 0; i < l->n; i++)
        if (!strcmp(l->v[i].name, name))
            return &l->v[i];
    ARRAY_GROW(l->v, l->cap, l->n + 1);
    l->v[l->n] = (struct chunk){.number = number, .name = xstrdup(name), .size = -1};
    return &l->v[l->n++];
}

static int put_sum(char **sum, const char *hex, size_t digits)
{
    if (strlen(hex) != digits || strspn(hex, "0123456789abcdefABCDEF") != digits)
        return err_set(ERR_FORMAT, "'%.80s': %zu hexadecimal digits are due", hex, digits);
    if (*sum && strcasecmp(*sum, hex))
        return err_set(ERR_FORMAT, "an earlier line has another checksum for this chunk");
    if (!*sum)
        *sum = xstrdup(hex);
    return ERR_OK;
}

static int parse_line(struct chunk_list *l, char *line)
{
    int rc;
    char *save = NULL, *url = strtok_r(line, " \t\r", &save);
    if (!url || *url == '#')
        return ERR_OK;
    if (!is_url(url))
        return err_set(ERR_FORMAT, "'%.60s' is no http(s) URL; lines are 'URL NAME'", url);
    char *name = strtok_r(NULL, " \t\r", &save);
    if (!name)
        return err_set(ERR_FORMAT, "there is no name after the URL");
    int number = chunk_number(name);
    if (number < 0)
        return err_set(ERR_FORMAT, "'%.60s' is no name of a chunk, such as abc_0000_step_v00.7z", name);
    struct chunk *c = chunk_named(l, name, number);
    list_put(&c->at, xstrdup(url));
    for (char *word; (word = strtok_r(NULL, " \t\r", &save)) && *word != '#';) {
        char *end;
        if (!strcmp(word, "unverified")) {
            c->unverified = true;
        } else if (!strncmp(word, "size=", 5)) {
            long long size = strtoll(word + 5, &end, 10);
            if (size <= 0 || *end)
                return err_set(ERR_FORMAT, "'%.60s': a number of bytes is due", word);
            if (c->size >= 0 && c->size != size)
                return err_set(ERR_FORMAT, "%s: an earlier line has another size", name);
            c->size = size;
        } else if (!strncmp(word, "sha256=", 7)) {
            if ((rc = put_sum(&c->sha256, word + 7, 64)) < 0)
                return rc;
        } else if (!strncmp(word, "md5=", 4)) {
            if ((rc = put_sum(&c->md5, word + 4, 32)) < 0)
                return rc;
        } else {
            return err_set(ERR_FORMAT, "'%.60s' is not known; size=, sha256=, md5= or unverified may follow a name", word);
        }
    }
    return ERR_OK;
}

static int read_list(struct chunk_list *l)
{
    struct buf text = BUF_INIT;
    int rc, line_number = 0;
    if (is_url(list_path)) {
        struct http *h = http_new(&(struct http_opts){.backoff_s = backoff_s});
        rc = http_get(h, list_path, 16 << 20, &text);
        http_free(h);
    } else {
        struct file_map m;
        rc = file_map(list_path, 16 << 20, &m);
        if (rc == ERR_OK) {
            buf_add(&text, m.data, m.size);
            file_unmap(&m);
        }
    }
    char *rest = text.s;
    if (text.n >= 3 && !memcmp(rest, "\xef\xbb\xbf", 3)) /* editors put it there */
        rest += 3;
    for (char *line; rc == ERR_OK && (line = strsep(&rest, "\n"));) {
        line_number++;
        if ((rc = parse_line(l, line)) < 0)
            rc = err_wrap("%s:%d", list_path, line_number);
    }
    if (rc == ERR_OK && !l->n)
        rc = err_set(ERR_FORMAT, "%s: there is no chunk in this list", list_path);
    buf_release(&text);
    return rc;
}

static void list_release(struct chunk_list *l)
{
    for (size_t i = 0; i < l->n; i++) {
        struct chunk *c = &l->v[i];
        for (size_t k = 0; k < c->at.n; k++)
            free((char *)c->at.v[k]);
        free(c->at.v);
        free(c->name);
        free(c->sha256);
        free(c->md5);
    }
    free(l->v);
}

/* Puts the chunks from n on, which are not wanted, out. */
static void list_cut(struct chunk_list *l, size_t n)
{
    struct chunk_list rest = {.v = xmalloc((l->n - n + 1) * sizeof *rest.v), .n = l->n - n};
    memcpy(rest.v, l->v + n, rest.n * sizeof *rest.v);
    l->n = n;
    list_release(&rest);
}

static void list_swap(struct chunk_list *l, size_t a, size_t b)
{
    struct chunk t = l->v[a];
    l->v[a] = l->v[b];
    l->v[b] = t;
}

/* Keeps the chunks that --chunks names. */
static int choose(struct chunk_list *l)
{
    bool *keep = xcalloc(l->n, sizeof *keep);
    char *text = xstrdup(chunks_wanted), *rest = text;
    int rc = ERR_OK;
    for (char *word; rc == ERR_OK && (word = strsep(&rest, ","));) {
        int first, last, end = 0;
        if (!strcmp(word, "all")) {
            first = 0, last = 9999;
        } else if (sscanf(word, "%d-%d%n", &first, &last, &end) == 2 && end && !word[end]) {
            if (first < 0 || last < first)
                rc = err_set(ERR_USAGE, "--chunks: '%s': the first is after the last", word);
        } else if (sscanf(word, "%d%n", &first, &end) == 1 && end && !word[end] && first >= 0) {
            last = first;
        } else {
            rc = err_set(ERR_USAGE, "--chunks: '%s': a number, a range such as 0-9, or all is due", word);
        }
        for (int number = first; rc == ERR_OK && number <= last && number <= 9999; number++) {
            bool found = false;
            for (size_t i = 0; i < l->n; i++)
                if (l->v[i].number == number)
                    found = keep[i] = true;
            if (!found && last < 9999)
                rc = err_set(ERR_USAGE, "--chunks: %s has no chunk %d", list_path, number);
        }
        if (rc == ERR_OK && last > 9999 && strcmp(word, "all"))
            rc = err_set(ERR_USAGE, "--chunks: %s has no chunk %d", list_path, last);
    }
    size_t n = 0;
    for (size_t i = 0; i < l->n; i++)
        if (keep[i])
            list_swap(l, n++, i);
    list_cut(l, n);
    free(keep);
    free(text);
    return rc;
}

/* ---- entities, counted as the bytes go by ---- */

/* Instances are statements that begin with '#': in a Part 21 file a statement ends with
 * ';', and neither strings nor comments count. */
struct counter {
    enum { START, INSIDE, STRING, COMMENT } at, outside; /* outside: where a comment began */
    int before; /* the byte before this one, to see comment delimiters; 0 after one was used */
    int64_t n;
};

static void count_entities(struct counter *c, const char *p, size_t n)
{
    for (size_t i = 0; i < n; i++) {
        unsigned char ch = (unsigned char)p[i];
        switch (c->at) {
        case STRING:
            if (ch == '\'') /* a doubled one opens again at once */
                c->at = INSIDE;
            break;
        case COMMENT:
            if (ch == '/' && c->before == '*') {
                c->at = c->outside;
                ch = 0;
            }
            break;
        default:
            if (ch == '*' && c->before == '/') {
                c->outside = c->at;
                c->at = COMMENT;
                ch = 0;
            } else if (ch == ';') {
                c->at = START;
            } else if (c->at == START && ch == '#') {
                c->n++;
                c->at = INSIDE;
            } else if (ch == '\'') {
                c->at = STRING;
            } else if (c->at == START && ch > ' ' && ch != '/') {
                c->at = INSIDE;
            }
        }
        c->before = ch;
    }
}

/* ---- the work ---- */

struct fetch {
    struct tool *tool;
    struct chunk_list list;
    pthread_mutex_t lock; /* the run database, the counts below */
    int64_t bytes_begun;  /* of chunks whose size is known */
    size_t n_begun;
    size_t n_models;
};

struct job { /* one chunk */
    struct fetch *f;
    const struct chunk *c;
    bool counted;
    bool local; /* the disk, not the chunk, is at fault: the whole run ends */
    int64_t kept, skipped, failed, current, bytes;
};

static int record(struct fetch *f, const struct run_item *item)
{
    pthread_mutex_lock(&f->lock);
    int rc = tool_item(f->tool, item);
    pthread_mutex_unlock(&f->lock);
    return rc;
}

static bool is_current(struct fetch *f, const char *item, const char *output)
{
    pthread_mutex_lock(&f->lock);
    bool yes = tool_item_current(f->tool, item, NULL, output);
    pthread_mutex_unlock(&f->lock);
    return yes;
}

static void on_bytes(void *ctx, int64_t n, int64_t total)
{
    struct job *j = ctx;
    struct fetch *f = j->f;
    if (!j->counted && total > 0) { /* chunks are of like sizes: the rest as those begun */
        j->counted = true;
        pthread_mutex_lock(&f->lock);
        f->bytes_begun += total;
        f->n_begun++;
        progress_total((uint64_t)((double)f->bytes_begun / (double)f->n_begun * (double)f->list.n));
        pthread_mutex_unlock(&f->lock);
    }
    progress_add((uint64_t)n, 0);
}

static int model_item(struct job *j, const char *item, const char *state, const char *reason, const char *output,
                      int64_t entities, double seconds)
{
    struct buf b = BUF_INIT;
    struct jw w = JW_INIT(&b);
    jw_object(&w);
    jw_kv_str(&w, "model", item);
    jw_kv_str(&w, "chunk", j->c->name);
    jw_kv_str(&w, "state", state);
    if (entities >= 0)
        jw_kv_int(&w, "entities", entities);
    if (reason)
        jw_kv_str(&w, "reason", reason);
    jw_end(&w);
    int rc = record(j->f, &(struct run_item){.item = item, .state = state, .reason = reason, .seconds = seconds,
                                             .output = output, .result = b.s});
    buf_release(&b);
    if (rc < 0)
        j->local = true;
    if (*state == 'd')
        j->kept++;
    else if (*state == 's')
        j->skipped++;
    else
        j->failed++;
    return rc;
}

/* One model, from the archive to the disk.  Negative only where the whole chunk, or the
 * whole run, cannot go on. */
static int unpack_model(struct job *j, struct archive *a, const char *path, int64_t *budget)
{
    struct counter count = {.at = START};
    struct atomic_file file = {0};
    double start = now_s();
    char *out = path_join(out_dir, path), why[200];
    const void *block;
    size_t n;
    int64_t offset, size = 0;
    int ar, rc = ERR_OK;
    bool writing = true, over = false;

    if (is_current(j->f, path, out)) {
        uint64_t was;
        int64_t mtime;
        j->current++;
        j->bytes += file_stamp(out, &was, &mtime) == ERR_OK ? (int64_t)was : 0;
        goto out;
    }
    if ((rc = atomic_open(&file, out)) < 0) {
        j->local = errno == ENOSPC || errno == EDQUOT || errno == EROFS;
        if (!j->local) /* a file where a folder is due, say */
            rc = model_item(j, path, "failed", err_text(), NULL, -1, now_s() - start);
        goto out;
    }
    while ((ar = archive_read_data_block(a, &block, &n, &offset)) == ARCHIVE_OK) {
        if (offset != size) { /* a hole; 7-Zip has none */
            ar = ARCHIVE_FAILED;
            archive_set_error(a, EINVAL, "sparse file");
            break;
        }
        size += (int64_t)n;
        if ((*budget -= (int64_t)n) < 0) {
            rc = err_set(ERR_FORMAT, "unpacks to more than %d times its size: not unpacked further", MAX_RATIO);
            goto out;
        }
        if (size > max_file)
            over = true;
        if (over || !writing)
            continue; /* the archive is one stream: the rest has to go by */
        count_entities(&count, block, n);
        writing = !max_entities || count.n <= max_entities;
        if (writing && fwrite(block, 1, n, file.f) != n) {
            rc = err_set(ERR_IO, "%s: %s", out, strerror(errno));
            j->local = true;
            goto out;
        }
        if (stop_requested()) {
            rc = err_set(ERR_CANCELLED, "stopped");
            goto out;
        }
    }
    j->bytes += size;
    if (ar == ARCHIVE_FATAL) {
        rc = err_set(ERR_FORMAT, "%s: damaged or cut off: %s", path, archive_error_string(a));
        goto out;
    }
    double took = now_s() - start;
    if (ar != ARCHIVE_EOF) { /* this entry alone: a wrong CRC */
        snprintf(why, sizeof why, "damaged: %s", archive_error_string(a) ? archive_error_string(a) : "in the archive");
        rc = model_item(j, path, "failed", why, NULL, -1, took);
    } else if (over) {
        snprintf(why, sizeof why, "too large: over %lld bytes (--max-file)", (long long)max_file);
        rc = model_item(j, path, "failed", why, NULL, -1, took);
    } else if (!size) {
        rc = model_item(j, path, "skipped", "empty: zero bytes in the archive", NULL, 0, took);
    } else if (!writing || count.n < min_entities) {
        snprintf(why, sizeof why, "entities: %s%lld, not in %lld-%s", writing ? "" : "over ",
                 (long long)(writing ? count.n : max_entities), (long long)min_entities, max_entities ? "" : "any");
        if (max_entities)
            snprintf(why + strlen(why), sizeof why - strlen(why), "%lld", (long long)max_entities);
        rc = model_item(j, path, "skipped", why, NULL, writing ? count.n : -1, took);
    } else if ((rc = atomic_commit(&file, false)) < 0) {
        j->local = true;
    } else {
        rc = model_item(j, path, "done", NULL, out, count.n, took);
    }
out:
    atomic_abort(&file);
    free(out);
    return rc;
}

/* An archive, by how it begins.  What a mirror's log-in page is saved as ends in .7z, too. */
static int check_begin(const char *path)
{
    char head[512];
    FILE *f = fopen(path, "rbe");
    if (!f)
        return err_set(ERR_IO, "%s: %s", path, strerror(errno));
    size_t n = fread(head, 1, sizeof head, f);
    bool failed = ferror(f);
    fclose(f);
    if (failed)
        return err_set(ERR_IO, "%s: %s", path, strerror(errno));
    if (n >= sizeof MAGIC_7Z && !memcmp(head, MAGIC_7Z, sizeof MAGIC_7Z))
        return ERR_OK;
    return err_set(ERR_FORMAT, "no 7-Zip archive: it is %s", !n ? "empty" : http_is_page(head, n) ? "a web page" : "something else");
}

static int unpack(struct job *j, const char *archive_path)
{
    struct archive *a = archive_read_new();
    struct archive_entry *e;
    uint64_t packed = 0;
    int64_t mtime, budget, entries = 0;
    int rc = file_stamp(archive_path, &packed, &mtime), ar = ARCHIVE_OK;

    budget = (int64_t)packed * MAX_RATIO + RATIO_SLACK;
    archive_read_support_format_7zip(a);
    if (rc == ERR_OK)
        rc = check_begin(archive_path);
    if (rc == ERR_OK && archive_read_open_filename(a, archive_path, 1 << 20) != ARCHIVE_OK)
        rc = err_set(ERR_FORMAT, "no 7-Zip archive: %s", archive_error_string(a));
    while (rc == ERR_OK && (ar = archive_read_next_header(a, &e)) != ARCHIVE_EOF) {
        if (ar == ARCHIVE_RETRY)
            continue;
        if (ar != ARCHIVE_OK && ar != ARCHIVE_WARN) {
            rc = err_set(ERR_FORMAT, "damaged or cut off: %s", archive_error_string(a));
            break;
        }
        if (stop_requested()) {
            rc = err_set(ERR_CANCELLED, "stopped");
            break;
        }
        if (++entries > MAX_ENTRIES) {
            rc = err_set(ERR_FORMAT, "holds over %d entries", MAX_ENTRIES);
            break;
        }
        const char *path = archive_entry_pathname_utf8(e), *raw = archive_entry_pathname(e);
        path = path ? path : raw;
        if (!path) {
            rc = model_item(j, "(no name)", "failed", "an entry without a readable name", NULL, -1, 0);
            continue;
        }
        while (!strncmp(path, "./", 2))
            path += 2;
        if (archive_entry_filetype(e) == AE_IFDIR)
            continue;
        const char *bad = path_unsafe(path);
        if (!bad && (*path == '.' || strstr(path, "/.")))
            bad = "hidden";
        if (bad) {
            char why[100];
            snprintf(why, sizeof why, "unsafe path: %s", bad);
            rc = model_item(j, path, "failed", why, NULL, -1, 0);
        } else if (archive_entry_filetype(e) != AE_IFREG || archive_entry_hardlink(e) || archive_entry_symlink(e))
            rc = model_item(j, path, "failed", "a link or special file: not unpacked", NULL, -1, 0);
        else if (archive_entry_is_encrypted(e))
            rc = model_item(j, path, "failed", "encrypted", NULL, -1, 0);
        else if (path_has_suffix(path, ".step") || path_has_suffix(path, ".stp"))
            rc = unpack_model(j, a, path, &budget);
    }
    archive_read_free(a);
    if (rc < 0 && !j->local && rc != ERR_CANCELLED)
        rc = err_wrap("%s", j->c->name);
    return rc;
}

/* Where a mirror has the chunk: fresh memory. */
static char *mirror_place(const char *mirror, const char *name)
{
    const char *hole = strstr(mirror, "{name}");
    if (hole)
        return xasprintf("%.*s%s%s", (int)(hole - mirror), mirror, name, hole + 6);
    size_t n = strlen(mirror);
    return xasprintf("%s%s%s", mirror, n && mirror[n - 1] == '/' ? "" : "/", name);
}

/* Gets the archive from one place and unpacks it. */
static int fetch_from(struct job *j, struct http *h, const char *place)
{
    const struct chunk *c = j->c;
    int rc;
    if (!is_url(place)) { /* a folder of archives: theirs, left alone */
        if (!strncmp(place, "file://", 7))
            place += 7;
        char sum[65];
        uint64_t size;
        int64_t mtime;
        if ((rc = file_stamp(place, &size, &mtime)) < 0)
            return rc;
        if (c->size >= 0 && (int64_t)size != c->size)
            return err_set(ERR_FORMAT, "%s: is %llu bytes long, and should be %lld", place, (unsigned long long)size,
                           (long long)c->size);
        if (c->sha256 && (rc = sha256_file(place, sum)) < 0)
            return rc;
        if (c->sha256 && strcasecmp(sum, c->sha256))
            return err_set(ERR_FORMAT, "%s: its SHA-256 is %s, and should be %s", place, sum, c->sha256);
        return unpack(j, place);
    }
    char *folder = path_join(out_dir, ".chunks"), *archive_path = path_join(folder, c->name);
    struct http_file file = {.url = place, .path = archive_path, .size = c->size, .sha256 = c->sha256, .md5 = c->md5,
                             .magic = (const char *)MAGIC_7Z, .n_magic = sizeof MAGIC_7Z, .progress = on_bytes, .ctx = j};
    rc = path_exists(archive_path) ? ERR_OK : http_download(h, &file);
    if (rc == ERR_OK) {
        rc = unpack(j, archive_path);
        /* One with failed models is asked for again: no need to download what is known to be right. */
        if (rc == ERR_FORMAT || (rc == ERR_OK && !keep_archives && !(j->failed && (c->sha256 || c->md5))))
            unlink(archive_path);
    } else {
        j->local = http_last(h).disk;
    }
    free(archive_path);
    free(folder);
    return rc;
}

static void *fetch_chunk(void *ctx, size_t index, int worker, int *code)
{
    struct fetch *f = ctx;
    struct job *j = xcalloc(1, sizeof *j);
    double start = now_s();
    int rc = ERR_OK;
    (void)worker;
    j->f = f;
    j->c = &f->list.v[index];
    *code = ERR_OK;
    pthread_mutex_lock(&f->lock);
    json_t *earlier = tool_item_earlier(f->tool, j->c->name, NULL, NULL);
    pthread_mutex_unlock(&f->lock);
    if (earlier) {
        j->current = json_integer_value(json_object_get(earlier, "kept"));
        json_decref(earlier);
        return j;
    }
    struct http *h = http_new(&(struct http_opts){.backoff_s = backoff_s});
    size_t n_places = mirrors.n + j->c->at.n;
    struct buf reasons = BUF_INIT;
    for (size_t i = 0; i < n_places; i++) {
        char *place = i < mirrors.n ? mirror_place(mirrors.v[i], j->c->name) : xstrdup(j->c->at.v[i - mirrors.n]);
        j->kept = j->skipped = j->failed = j->current = j->bytes = 0;
        rc = fetch_from(j, h, place);
        free(place);
        if (rc == ERR_OK || rc == ERR_CANCELLED || j->local)
            break;
        buf_printf(&reasons, "%s%s", reasons.n ? "; " : "", err_text());
        if (i + 1 < n_places)
            log_note("%s; trying the next place", err_text());
    }
    http_free(h);
    if (rc == ERR_CANCELLED || j->local) {
        *code = rc;
    } else {
        struct buf b = BUF_INIT;
        struct jw w = JW_INIT(&b);
        /* A chunk with failed models is looked at again the next time. */
        const char *state = rc == ERR_OK && !j->failed ? "done" : "failed";
        if (rc == ERR_OK && j->failed)
            buf_printf(&reasons, "%lld of its models failed", (long long)j->failed);
        jw_object(&w);
        jw_kv_str(&w, "chunk", j->c->name);
        jw_kv_str(&w, "state", state);
        jw_kv_int(&w, "kept", j->kept + j->current);
        jw_kv_int(&w, "skipped", j->skipped);
        jw_kv_int(&w, "failed", j->failed);
        jw_kv_int(&w, "bytes", j->bytes);
        if (*state == 'f')
            jw_kv_str(&w, "reason", reasons.s);
        jw_end(&w);
        *code = record(f, &(struct run_item){.item = j->c->name, .state = state, .reason = *state == 'f' ? reasons.s : NULL,
                                             .seconds = now_s() - start, .result = b.s});
        j->local = *code < 0;
        buf_release(&b);
        if (rc == ERR_OK)
            log_note("%s: %lld models kept, %lld left out, %lld failed", j->c->name, (long long)(j->kept + j->current),
                     (long long)j->skipped, (long long)j->failed);
    }
    buf_release(&reasons);
    return j;
}

static int chunk_done(void *ctx, const struct pool_item *item)
{
    struct job *j = item->result;
    struct fetch *f = ctx;
    f->n_models += (size_t)(j->kept + j->current);
    bool local = j->local;
    free(j);
    return local ? err_set(item->code, "%s", item->error) : ERR_OK;
}

static int run(struct tool *t)
{
    struct fetch f = {.tool = t, .lock = PTHREAD_MUTEX_INITIALIZER};
    size_t n_unverified = 0;
    int rc = max_entities && max_entities < min_entities ? err_set(ERR_USAGE, "--max-entities is below --min-entities")
                                                         : read_list(&f.list);
    if (rc == ERR_OK)
        rc = choose(&f.list);
    if (rc == ERR_OK && t->shard_n > 1) {
        size_t n = 0;
        for (size_t i = (size_t)t->shard_i - 1; i < f.list.n; i += (size_t)t->shard_n)
            list_swap(&f.list, n++, i);
        list_cut(&f.list, n);
    }
    if (rc == ERR_OK)
        rc = mkdir_p(out_dir);
    if (rc == ERR_OK)
        rc = tool_begin(t);
    if (rc < 0)
        goto out;
    for (size_t i = 0; i < f.list.n; i++)
        n_unverified += f.list.v[i].unverified;
    if (n_unverified && !mirrors.n)
        log_note("%zu of %zu entries are unverified: nobody has yet seen that their URLs hold these chunks", n_unverified,
                 f.list.n);
    progress_start("fetching", 0, "B");
    rc = pool_run(&(struct pool_job){.n = f.list.n, .threads = t->threads, .work = fetch_chunk, .done = chunk_done, .ctx = &f});
    progress_end();
    char *folder = path_join(out_dir, ".chunks");
    rmdir(folder); /* unless something is kept in there */
    free(folder);
    tool_print(t, "%zu models of %zu chunks in %s\n", f.n_models, f.list.n, out_dir);
out:
    list_release(&f.list);
    return rc;
}

int main(int argc, char **argv)
{
    struct tool t;
    tool_start(&t, &spec, argc, argv);
    return tool_finish(&t, run(&t));
}
