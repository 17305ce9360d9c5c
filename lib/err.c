#include "lib/err.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

static _Thread_local char text[1024];
static _Thread_local int code_last;

int err_set(int code, const char *fmt, ...)
{
    char tmp[sizeof text]; /* arguments may point into text */
    va_list ap;

    va_start(ap, fmt);
    vsnprintf(tmp, sizeof tmp, fmt, ap);
    va_end(ap);
    memcpy(text, tmp, sizeof text);
    code_last = code;
    return code;
}

int err_wrap(const char *fmt, ...)
{
    char tmp[2 * sizeof text];
    va_list ap;

    va_start(ap, fmt);
    int n = vsnprintf(tmp, sizeof text, fmt, ap);
    va_end(ap);
    if (n < 0)
        n = 0;
    if ((size_t)n >= sizeof text)
        n = sizeof text - 1;
    snprintf(tmp + n, sizeof tmp - (size_t)n, ": %s", text);
    memcpy(text, tmp, sizeof text - 1);
    text[sizeof text - 1] = 0;
    return code_last;
}

const char *err_text(void)
{
    return text;
}

int err_code(void)
{
    return code_last;
}

void err_clear(void)
{
    text[0] = 0;
    code_last = ERR_OK;
}
