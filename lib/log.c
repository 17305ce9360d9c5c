#include "lib/log.h"

#include <pthread.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <time.h>
#include <unistd.h>

#include "lib/mem.h"

bool log_quiet;
static const char *tool_name = "";
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;

/* The bar on screen, if any; all under lock. */
static struct {
    bool active, drawn, tty;
    char what[64], unit[16], tail[128];
    uint64_t total, done, earlier, failed;
    double started, last_draw, next_line;
} bar;

double now_s(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

double wall_clock_s(void)
{
    struct timespec t;
    clock_gettime(CLOCK_REALTIME, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

const char *human_bytes(char out[32], double b)
{
    static const char *const unit[] = {"B", "kB", "MB", "GB", "TB"};
    int i = 0;
    while (b >= 999.5 && i < 4) {
        b /= 1000;
        i++;
    }
    snprintf(out, 32, b < 9.95 && i ? "%.1f %s" : "%.0f %s", b, unit[i]);
    return out;
}

const char *human_seconds(char out[32], double s)
{
    if (s < 0)
        s = 0;
    if (s < 9.95)
        snprintf(out, 32, "%.1f s", s);
    else if (s < 60)
        snprintf(out, 32, "%.0f s", s);
    else if (s < 3600)
        snprintf(out, 32, "%d min %02d s", (int)s / 60, (int)s % 60);
    else
        snprintf(out, 32, "%ld h %02ld min", (long)s / 3600, (long)s / 60 % 60);
    return out;
}

static void bar_clear(void)
{
    if (bar.drawn)
        fputs("\r\033[K", stderr);
    bar.drawn = false;
}

/* A message may quote what a file holds: one line of it comes out, and nothing that a terminal would obey. */
static void make_printable(char *s)
{
    for (unsigned char *p = (unsigned char *)s, *end = p + strlen(s); p < end;) {
        uint32_t cp = 0;
        int n = utf8_at(p, (size_t)(end - p), &cp);
        if (!n || (cp < 32 && cp != '\t') || (cp >= 127 && cp < 160)) {
            *p = '?';
            for (int i = 1; i < n; i++)
                p[i] = '?';
        }
        p += n ? n : 1;
    }
}

static void message(const char *level, const char *fmt, va_list ap)
{
    char text[4096];
    vsnprintf(text, sizeof text, fmt, ap);
    make_printable(text);
    pthread_mutex_lock(&lock);
    bar_clear();
    fprintf(stderr, "%s: %s%s\n", tool_name, level, text);
    pthread_mutex_unlock(&lock);
}

void log_init(const char *tool)
{
    tool_name = tool;
}

void log_note(const char *fmt, ...)
{
    if (log_quiet)
        return;
    va_list ap;
    va_start(ap, fmt);
    message("", fmt, ap);
    va_end(ap);
}

void log_warn(const char *fmt, ...)
{
    va_list ap;
    va_start(ap, fmt);
    message("warning: ", fmt, ap);
    va_end(ap);
}

void log_error(const char *fmt, ...)
{
    va_list ap;
    va_start(ap, fmt);
    message("error: ", fmt, ap);
    va_end(ap);
}

/* "rounding 120/158 files (2 failed), 410 files/s, 0.1 s left" */
static int bar_words(char *out, size_t cap, double now)
{
    double took = now - bar.started, rate = took > 0 ? (double)(bar.done - bar.earlier) / took : 0;
    bool bytes = !strcmp(bar.unit, "B");
    char a[32], b[32], c[32], left[48] = "", bad[40] = "";
    if (bytes) {
        human_bytes(a, (double)bar.done);
        human_bytes(b, (double)bar.total);
        human_bytes(c, rate);
    } else {
        snprintf(a, sizeof a, "%llu", (unsigned long long)bar.done);
        snprintf(b, sizeof b, "%llu", (unsigned long long)bar.total);
        snprintf(c, sizeof c, rate < 10 ? "%.2f %s" : "%.0f %s", rate, bar.unit);
    }
    if (bar.failed)
        snprintf(bad, sizeof bad, " (%llu failed)", (unsigned long long)bar.failed);
    if (bar.total > bar.done && rate > 0) {
        char t[32];
        snprintf(left, sizeof left, ", %s left", human_seconds(t, (double)(bar.total - bar.done) / rate));
    }
    return snprintf(out, cap, "%s %s%s%s%s%s%s, %s/s%s%s%s", bar.what, a, bar.total ? "/" : "",
                    bar.total ? b : "", bytes ? "" : " ", bytes ? "" : bar.unit, bad, c, left,
                    *bar.tail ? ", " : "", bar.tail);
}

static void bar_draw(bool force)
{
    double now = now_s();
    if (!bar.active || log_quiet)
        return;
    char words[400];
    if (bar.tty) {
        if (!force && (now - bar.started < 0.5 || now - bar.last_draw < 0.1))
            return;
        bar.last_draw = now;
        struct winsize w;
        int cols = ioctl(2, TIOCGWINSZ, &w) == 0 && w.ws_col > 20 ? w.ws_col : 80;
        int n = bar_words(words, sizeof words, now);
        fprintf(stderr, "\r\033[K");
        int width = cols - n - 4;
        if (bar.total && width >= 10) {
            if (width > 40)
                width = 40;
            int full = (int)((double)width * (double)bar.done / (double)bar.total);
            fputc('[', stderr);
            for (int i = 0; i < width; i++)
                fputc(i < full ? '#' : '.', stderr);
            fputs("] ", stderr);
        }
        fprintf(stderr, "%.*s", cols - 1, words);
        fflush(stderr);
        bar.drawn = true;
    } else if (force || now >= bar.next_line) {
        bar.next_line = now + (now - bar.started < 120 ? 10 : 60);
        bar_words(words, sizeof words, now);
        fprintf(stderr, "%s: %s\n", tool_name, words);
    }
}

void progress_start(const char *what, uint64_t total, const char *unit)
{
    pthread_mutex_lock(&lock);
    bar_clear();
    memset(&bar, 0, sizeof bar);
    bar.active = true;
    bar.tty = isatty(2);
    snprintf(bar.what, sizeof bar.what, "%s", what);
    snprintf(bar.unit, sizeof bar.unit, "%s", unit);
    bar.total = total;
    bar.started = now_s();
    bar.next_line = bar.started + 10;
    pthread_mutex_unlock(&lock);
}

void progress_add(uint64_t done, uint64_t failed)
{
    pthread_mutex_lock(&lock);
    bar.done += done;
    bar.failed += failed;
    bar_draw(false);
    pthread_mutex_unlock(&lock);
}

void progress_earlier(uint64_t done)
{
    pthread_mutex_lock(&lock);
    bar.done += done;
    bar.earlier += done;
    pthread_mutex_unlock(&lock);
}

void progress_total(uint64_t total)
{
    pthread_mutex_lock(&lock);
    bar.total = total;
    pthread_mutex_unlock(&lock);
}

void progress_text(const char *fmt, ...)
{
    va_list ap;
    va_start(ap, fmt);
    pthread_mutex_lock(&lock);
    vsnprintf(bar.tail, sizeof bar.tail, fmt, ap);
    pthread_mutex_unlock(&lock);
    va_end(ap);
}

void progress_end(void)
{
    pthread_mutex_lock(&lock);
    if (bar.active && bar.drawn) {
        bar_draw(true);
        fputc('\n', stderr);
    }
    bar.active = bar.drawn = false;
    pthread_mutex_unlock(&lock);
}
