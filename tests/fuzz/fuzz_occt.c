/* The scoring tools on damaged STEP files, OpenCASCADE and all:
 *
 *     fuzz-occt BIN OUT N M SEED FILE-OR-DIR...
 *
 * Makes N files in OUT/files from those named, each damaged in a way or several that a model or a disk may damage it:
 * numbers, references, keywords and parameters changed, entities lost, doubled or swapped, parts of two files joined,
 * bytes flipped, text cut short.  The same seed makes the same files.  Runs renderability over them, strict and
 * reference, and chamfer over M against the files they came from, each within limits.  OpenCASCADE may crash, hang or
 * eat memory on any of them: that is that file's verdict.  What must hold, else exit 1:
 *
 *     each file has one line, with a status that is known; the totals are the sums; the exit status is 0 or 1;
 *     no process is left behind: this one is the reaper of whatever a tool leaves. */
#include <fcntl.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include "lib/err.h"
#include "lib/files.h"
#include "lib/json.h"
#include "lib/log.h"
#include "lib/register.h" /* its random numbers */

static struct mt19937 rng;

static size_t below(size_t n)
{
    return n ? mt_u32(&rng) % n : 0;
}

/* ---- damage ---- */

static void replace(struct buf *b, size_t at, size_t len, const char *with, size_t n)
{
    struct buf out = BUF_INIT;
    buf_add(&out, b->s, at);
    buf_add(&out, with, n);
    buf_add(&out, b->s + at + len, b->n - at - len);
    buf_release(b);
    *b = out;
}

/* A span of the data section between `open` characters and where `in` ends, from a random place on; false: none. */
static bool find_span(const struct buf *b, const char *open, const char *in, size_t *at, size_t *len)
{
    const char *data = strstr(b->s, "DATA;");
    size_t from = data ? (size_t)(data - b->s) + 5 : 0, i = from + below(b->n - from);
    for (size_t k = 0; k < b->n - from; k++, i++) {
        if (i >= b->n)
            i = from;
        size_t n = i && strchr(open, b->s[i - 1]) && b->s[i - 1] ? strspn(b->s + i, in) : 0;
        if (n) {
            *at = i;
            *len = n;
            return true;
        }
    }
    return false;
}

static void change_number(struct buf *b, bool gentle)
{
    static const char *const odd[] = {"0.", "-1.", "1.E30", "-1.E300", "1.E-30", "1.E400", "NaN", "inf", "$", "*", "''", ".T.", "#1", "()",
                                      "1", "9999999999999999999", "1.5.2", "-", "1.E", "6.283185307179586"};
    size_t at, len;
    char text[40];
    if (!find_span(b, "(,", "-+0123456789.Ee", &at, &len) || b->s[at] == '.') /* .T. */
        return;
    double v = strtod(b->s + at, NULL);
    size_t how = below(gentle ? 5 : 6);
    if (how < 4) {
        v = how == 0 ? -v : how == 1 ? v * pow(10, (double)below(9) - 4) : how == 2 ? v + ((double)below(2001) - 1000) / 500
                                                                                    : v * (1 + 1e-4 * ((double)below(2001) - 1000));
        snprintf(text, sizeof text, "%.9G", v);
        if (!strpbrk(text, ".NI")) { /* a real, as Part 21 has it: 1.E-05 */
            char *e = text + strcspn(text, "E");
            memmove(e + 1, e, strlen(e) + 1);
            *e = '.';
        }
    } else {
        snprintf(text, sizeof text, "%s", odd[below(gentle ? 5 : ARRAY_LEN(odd))]);
    }
    replace(b, at, len, text, strlen(text));
}

/* To another entity of the file, mostly; itself, one that is not there, the one before. */
static void change_reference(struct buf *b, bool gentle)
{
    size_t at, len, from, from_len;
    char text[24];
    if (!find_span(b, "#", "0123456789", &at, &len) || !find_span(b, "#", "0123456789", &from, &from_len))
        return;
    if (gentle && b->s[at + len] == '=') /* the name of an entity itself */
        return;
    unsigned long id = strtoul(b->s + from, NULL, 10);
    size_t how = below(gentle ? 7 : 10);
    snprintf(text, sizeof text, "%lu", how < 7 ? id : how == 7 ? id + 1 : how == 8 ? 999999 : 0);
    replace(b, at, len, text, strlen(text));
}

static void change_keyword(struct buf *b, bool gentle)
{
    static const char capitals[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZ_0123456789";
    size_t at, len, from, from_len;
    if (!find_span(b, "=( ", capitals, &at, &len) || !find_span(b, "=( ", capitals, &from, &from_len))
        return;
    char *word = xstrndup(b->s + from, from_len);
    if (gentle || below(4))
        replace(b, at, len, word, from_len);
    else
        b->s[at + below(len)] = capitals[below(sizeof capitals - 1)];
    free(word);
}

/* The bounds of the instance around a random place: from its # to behind its ; and white space. */
static bool find_instance(const struct buf *b, size_t *at, size_t *len)
{
    size_t i, n;
    if (!find_span(b, ";\n", "#", &i, &n))
        return false;
    const char *end = strchr(b->s + i, ';');
    if (!end)
        return false;
    *at = i;
    *len = (size_t)(end + 1 - b->s) - i;
    *len += strspn(b->s + i + *len, "\r\n ");
    return true;
}

static void change_instances(struct buf *b, const struct buf *other)
{
    size_t at, len, from, from_len;
    const struct buf *source = below(3) ? b : other;
    if (!find_instance(b, &at, &len) || !find_instance(source, &from, &from_len))
        return;
    char *text = xstrndup(source->s + from, from_len);
    if (below(8)) { /* under a number of its own */
        char *own = xasprintf("#%zu%s", 900000 + below(100000), text + strcspn(text, "="));
        free(text);
        text = own;
        from_len = strlen(own);
    }
    switch (below(3)) {
    case 0: replace(b, at, len, "", 0); break;             /* lost */
    case 1: replace(b, at, 0, text, from_len); break;      /* doubled, or a stranger */
    default: replace(b, at, len, text, from_len); break;   /* overwritten */
    }
    free(text);
}

/* A parameter list gets one fewer, one more, or an empty one. */
static void change_parameters(struct buf *b)
{
    size_t at, len;
    if (!find_span(b, "(,", "#-+0123456789.E'$*TF", &at, &len))
        return;
    switch (below(4)) {
    case 0: replace(b, at, len + (b->s[at + len] == ','), "", 0); break;
    case 1: replace(b, at, 0, "0.,", 3); break;
    case 2: replace(b, at, 0, "(", 1); break;
    default: {
        size_t end = strcspn(b->s + at, ")");
        replace(b, at, end, "", 0);
        break;
    }
    }
}

static void change_bytes(struct buf *b, const struct buf *other)
{
    size_t at = below(b->n), len = 1 + below(64);
    len = at + len > b->n ? b->n - at : len;
    switch (below(6)) {
    case 0: b->s[at] = (char)mt_u32(&rng); break;
    case 1: replace(b, at, len, "", 0); break;
    case 2: replace(b, at, b->n - at, "", 0); break; /* cut short */
    case 3: {
        char *text = xstrndup(b->s + at, len);
        for (size_t k = 1 + below(below(8) ? 4 : 2000); k--;) /* over and over, as a model that loops */
            replace(b, at, 0, text, len);
        free(text);
        break;
    }
    case 4: {
        size_t from = below(other->n);
        replace(b, at, b->n - at, other->s + from, other->n - from);
        break;
    }
    default: replace(b, at, 0, ")(;,'#=*$/*" + below(10), 1); break;
    }
}

static void damage(struct buf *b, const struct buf *other)
{
    bool gentle = below(3); /* so that it is mostly OpenCASCADE's to find out */
    for (size_t k = 1 + below(gentle ? 3 : 12); k-- && b->n > 40;)
        switch (below(gentle ? 9 : 12)) {
        case 0: case 1: case 2: case 3: change_number(b, gentle); break;
        case 4: case 5: change_reference(b, gentle); break;
        case 6: change_keyword(b, gentle); break;
        case 7: case 8: change_instances(b, other); break;
        case 9: change_parameters(b); break;
        default: change_bytes(b, other); break;
        }
}

/* ---- the tools, and what they leave ---- */

/* Runs argv with its standard output in a file and what it says in FILE.log; the exit status, or -1 for a signal.  leaked: processes that were
 * still there when it had ended. */
static int run_tool(char *const *argv, const char *out, int *leaked)
{
    int status = 0, own = 0;
    pid_t pid = fork();
    if (!pid) {
        char *log = xasprintf("%s.log", out);
        int fd = open(out, O_WRONLY | O_CREAT | O_TRUNC, 0666), fd2 = open(log, O_WRONLY | O_CREAT | O_TRUNC, 0666);
        if (fd < 0 || fd2 < 0 || dup2(fd, STDOUT_FILENO) < 0 || dup2(fd2, STDERR_FILENO) < 0)
            _exit(126);
        execv(argv[0], argv);
        _exit(127);
    }
    for (pid_t p; (p = waitpid(-1, &status, 0)) > 0;) /* orphans that ended along with it are no leak */
        if (p == pid) {
            own = WIFEXITED(status) ? WEXITSTATUS(status) : -1;
            break;
        }
    *leaked = 0;
    for (int tries = 0; tries < 20; tries++) { /* one that was just told to end is given two seconds */
        pid_t p = waitpid(-1, &status, WNOHANG);
        if (p < 0)
            return own;
        if (!p)
            usleep(100000);
    }
    *leaked = 1;
    return own;
}

struct tally {
    char name[64];
    size_t n;
};

static void count(struct tally *t, size_t most, const char *name)
{
    size_t i = 0;
    while (i < most - 1 && t[i].n && strcmp(t[i].name, name))
        i++;
    if (!t[i].n)
        snprintf(t[i].name, sizeof t[i].name, "%s", i < most - 1 ? name : "other");
    t[i].n++;
}

static int by_number(const void *a, const void *b)
{
    size_t x = ((const struct tally *)a)->n, y = ((const struct tally *)b)->n;
    return x < y ? 1 : x > y ? -1 : 0;
}

/* Which file a path names, by the number that it is called; SIZE_MAX: none. */
static size_t number_of(const char *path, size_t n)
{
    char *end = NULL;
    size_t i = path ? strtoul(path_basename(path), &end, 10) : SIZE_MAX;
    return end && !strcmp(end, ".step") && i < n ? i : SIZE_MAX;
}

/* Reads a tool's lines; true: each of n files has one, of a status in `known`. */
static bool accounted(const char *file, const char *key, size_t n, const char *known)
{
    enum { MOST = 24 };
    struct tally t[MOST] = {{{0}, 0}};
    unsigned char *seen = xcalloc(n + 1, 1);
    size_t lines = 0, twice = 0, strange = 0;
    struct file_map m;
    if (file_map(file, 0, &m) < 0) {
        printf("  %s\n", err_text());
        free(seen);
        return false;
    }
    for (const char *p = m.data, *end = m.data + m.size; p < end;) {
        const char *stop = memchr(p, '\n', (size_t)(end - p));
        stop = stop ? stop : end;
        json_t *line = NULL;
        if (json_read_mem(file, p, (size_t)(stop - p), &line) < 0) {
            strange++;
        } else if (json_object_get(line, key)) {
            size_t i = number_of(json_string_value(json_object_get(line, key)), n);
            const char *status = json_string_value(json_object_get(line, "status")), *worker = json_string_value(json_object_get(line, "worker"));
            const char *reason = json_string_value(json_object_get(line, "reason"));
            char what[64];
            lines++;
            strange += i == SIZE_MAX || !status || !strstr(known, status) || (!reason != !strcmp(status, "ok"));
            twice += i != SIZE_MAX && seen[i]++;
            reason = worker && *worker ? worker : reason;
            snprintf(what, sizeof what, "%s%s%.*s", status ? status : "?", reason ? ": " : "", reason ? (int)strcspn(reason, ":(") : 0, reason ? reason : "");
            if (reason && !strncmp(reason, "crash:", 6)) /* of which signal */
                snprintf(what, sizeof what, "%s: %.40s", status ? status : "?", reason);
            count(t, MOST, what);
        }
        json_decref(line);
        p = stop + 1;
    }
    file_unmap(&m);
    size_t missing = 0;
    for (size_t i = 0; i < n; i++)
        missing += !seen[i];
    free(seen);
    qsort(t, MOST, sizeof *t, by_number);
    for (size_t i = 0; i < MOST && t[i].n; i++)
        printf("  %7zu  %s\n", t[i].n, t[i].name);
    if (missing || twice || strange)
        printf("  of %zu files %zu have no line, %zu several; %zu lines are not as they should be\n", n, missing, twice, strange);
    return lines == n && !missing && !twice && !strange;
}

static bool check_tool(const char *what, char *const *argv, const char *out, const char *key, size_t n, const char *known)
{
    int leaked;
    double start = now_s();
    int status = run_tool(argv, out, &leaked);
    double took = now_s() - start;
    printf("%s: %zu files in %.0f s (%.1f a second), exit %d\n", what, n, took, (double)n / took, status);
    bool good = accounted(out, key, n, known);
    if (status != 0 && status != 1)
        printf("  exit status %d\n", status);
    if (leaked)
        printf("  a process is left behind\n");
    puts(good && !leaked && (status == 0 || status == 1) ? "  every file accounted for, no process left" : "  FAILED");
    fflush(stdout);
    return good && !leaked && (status == 0 || status == 1);
}

/* ---- */

static int make_files(const char *out, const struct buf *text, const struct file_list *l, size_t n, size_t n_truths)
{
    int rc = ERR_OK;
    for (size_t i = 0; i < n && rc == ERR_OK; i++) {
        size_t of = i % l->n;
        struct buf b = BUF_INIT;
        buf_add(&b, text[of].s, text[of].n);
        damage(&b, &text[below(l->n)]);
        char *path = xasprintf("%s/files/%06zu.step", out, i);
        rc = file_write(path, b.s, b.n, false);
        free(path);
        buf_release(&b);
        if (i >= n_truths || rc < 0)
            continue;
        char *pred = xasprintf("%s/pred/%06zu.step", out, i), *truth = xasprintf("%s/truth/%06zu.step", out, i);
        path = xasprintf("%s/files/%06zu.step", out, i);
        rc = file_copy(path, pred, false);
        if (rc == ERR_OK)
            rc = file_write(truth, text[of].s, text[of].n, false);
        free(path);
        free(pred);
        free(truth);
    }
    return rc;
}

int main(int argc, char **argv)
{
    if (argc < 7) {
        fprintf(stderr, "fuzz-occt BIN OUT N N-FOR-CHAMFER SEED FILE-OR-DIR...\n");
        return 2;
    }
    const char *bin = argv[1], *out = argv[2];
    size_t n = strtoul(argv[3], NULL, 10), n_truths = strtoul(argv[4], NULL, 10);
    struct file_list l = {0};
    int rc = ERR_OK;
    for (int i = 6; i < argc && rc == ERR_OK; i++)
        rc = file_list_add(&l, argv[i], STEP_SUFFIXES);
    if (rc == ERR_OK && !l.n)
        rc = err_set(ERR_IO, "%s: holds no .step or .stp file", argv[6]);
    struct buf *text = xcalloc(l.n + 1, sizeof *text);
    for (size_t i = 0; i < l.n && rc == ERR_OK; i++) {
        struct file_map m;
        rc = file_map(l.v[i].path, 1 << 20, &m);
        text[i] = BUF_INIT;
        if (rc == ERR_OK) {
            buf_add(&text[i], m.data, m.size);
            file_unmap(&m);
        }
    }
    mt_seed(&rng, (uint32_t)strtoul(argv[5], NULL, 10));
    n_truths = n_truths < n ? n_truths : n;
    if (rc == ERR_OK && !n)
        rc = err_set(ERR_USAGE, "%s: no number of files", argv[3]);
    if (rc == ERR_OK)
        rc = remove_tree(out);
    if (rc == ERR_OK)
        rc = make_files(out, text, &l, n, n_truths);
    if (rc == ERR_OK && prctl(PR_SET_CHILD_SUBREAPER, 1) < 0)
        rc = err_set(ERR_IO, "prctl: no child subreaper");
    if (rc < 0) {
        fprintf(stderr, "fuzz-occt: %s\n", err_text());
        return 3;
    }
    char *renderability = path_join(bin, "renderability"), *chamfer = path_join(bin, "chamfer"), *files = path_join(out, "files");
    char *pred = path_join(out, "pred"), *truth = path_join(out, "truth"), *lines[4];
    for (int k = 0; k < 4; k++)
        lines[k] = xasprintf("%s/%s.jsonl", out, (const char *[]){"strict", "reference", "best", "reference-distance"}[k]);
    char *const tool[4][20] = {
        {renderability, "--db", "none", "--json", "-q", "--timeout", "5", "--memory", "1000000000", "--mode", "strict", files},
        {renderability, "--db", "none", "--json", "-q", "--timeout", "5", "--memory", "1000000000", "--mode", "reference", files},
        {chamfer, "--db", "none", "--json", "-q", "--timeout", "5", "--memory", "1000000000", "--align", "best", "--pred", pred, "--truth", truth},
        {chamfer, "--db", "none", "--json", "-q", "--timeout", "5", "--memory", "1000000000", "--align", "reference", "--pred", pred, "--truth", truth},
    };
    bool good = true;
    printf("%zu files made of %zu\n", n, l.n);
    good &= check_tool("renderability --mode strict", tool[0], lines[0], "file", n, "ok error timeout");
    good &= check_tool("renderability --mode reference", tool[1], lines[1], "file", n, "ok error timeout");
    if (n_truths) {
        good &= check_tool("chamfer --align best", tool[2], lines[2], "pred", n_truths, "ok pred_failed truth_failed degenerate");
        good &= check_tool("chamfer --align reference", tool[3], lines[3], "pred", n_truths, "ok pred_failed truth_failed degenerate");
    }
    for (int k = 0; k < 4; k++)
        free(lines[k]);
    for (size_t i = 0; i < l.n; i++)
        buf_release(&text[i]);
    free(text);
    free(renderability), free(chamfer), free(files), free(pred), free(truth);
    file_list_release(&l);
    return good ? 0 : 1;
}
