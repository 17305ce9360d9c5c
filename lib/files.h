/* files.h: reading, listing and atomic writing of files.
 *
 * Outputs appear under their final name only whole: they are written as
 * ".NAME.part" beside it and renamed.  A killed tool leaves at most such a
 * dot-file, which the next run overwrites and directory walks ignore.  Two
 * processes that write the same file at once do not mix: the part is locked, and
 * who finds it so takes ".NAME.PID.part"; the last to finish stands.
 */
#ifndef LIB_FILES_H
#define LIB_FILES_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

#include "lib/mem.h"

/* Size and modification time, to see whether a file changed. */
struct file_stamp {
    uint64_t size;
    int64_t mtime_ns;
    bool known;
};

/* ---- reading ---- */
struct file_map {
    const char *data; /* not NUL-terminated; non-NULL even when size is 0 */
    size_t size;
    bool mapped;
    char *heap; /* owned, when read rather than mapped */
    struct file_stamp stamp; /* of the file when it was opened */
};
/* The bytes of a regular file (or of standard input for "-") of at most max_bytes
 * (0: no limit, but 1 GiB for what is no regular file).  ERR_IO: cannot be read, or is a directory; ERR_NOMEM: too big. */
int file_map(const char *path, size_t max_bytes, struct file_map *out);
void file_unmap(struct file_map *m);

bool path_is_dir(const char *path);
bool path_same(const char *a, const char *b); /* both are there, and one file or folder */
bool path_exists(const char *path);
/* Size and modification time in one word pair, to see whether a file changed. */
int file_stamp(const char *path, uint64_t *size, int64_t *mtime_ns);

/* ---- paths: results are fresh memory that the caller frees ---- */
char *path_join(const char *dir, const char *name);
char *path_dirname(const char *path);          /* "." when there is none */
const char *path_basename(const char *path);   /* borrowed, inside path */
char *path_stem(const char *path);             /* base name less its last suffix */
bool path_has_suffix(const char *path, const char *suffix); /* ".step": case-insensitive */
/* A relative path from an archive, a server or another untrusted place: NULL when it may
 * be used below a folder, or why not ("absolute", "leads out of the folder", ...). */
const char *path_unsafe(const char *rel);
int mkdir_p(const char *dir);
int remove_tree(const char *dir);              /* rm -r; missing is fine; never follows links */
/* A new folder in TMPDIR (/tmp), readable by its owner alone: the caller's, who removes and frees it.  NULL: the error is set. */
char *temp_dir(const char *name);

/* ---- atomic writing ---- */
struct atomic_file {
    FILE *f;
    char *path, *tmp; /* tmp: NULL when path is a device or a pipe, which is written to as it is */
};
/* Creates missing folders.  Then write to a->f, and commit or abort. */
int atomic_open(struct atomic_file *a, const char *path);
/* fclose, optionally fsync (for what must survive power loss), rename.
 * A full disk is noticed here at the latest.  Frees a either way. */
int atomic_commit(struct atomic_file *a, bool sync);
void atomic_abort(struct atomic_file *a); /* safe after commit */
/* All in one. */
int file_write(const char *path, const void *data, size_t n, bool sync);
/* After file_write() has failed in this thread: the next file will meet the same, a full disk or a place where nothing may
 * be written. */
bool file_write_hopeless(void);
/* A file's bytes under another name, of any size. */
int file_copy(const char *from, const char *to, bool sync);

/* ---- directory walks ---- */
struct file_list {
    struct file_entry {
        char *path; /* openable */
        char *rel;  /* relative to the walked directory, or the base name of a lone file */
    } *v;
    size_t n, cap;
};
/* Adds path itself if a file, or every file below it whose name ends (in any
 * case) in one of the NULL-terminated suffixes (NULL: every file).  Dot-files
 * and symbolic links to directories are skipped; a link to nothing is added, if
 * suffixes are asked for, as a file that cannot be read.  Sorted by rel.  A missing
 * path is ERR_IO; a directory without such files adds nothing. */
int file_list_add(struct file_list *l, const char *path, const char *const *suffixes);
void file_list_release(struct file_list *l);
/* Keeps shard i of n (1-based): every n-th entry of the sorted list. */
void file_list_shard(struct file_list *l, int i, int n);
extern const char *const STEP_SUFFIXES[]; /* .step .stp */

/* ---- digests ---- */
/* Lower-case hex SHA-256 of a file, or of bytes. */
int sha256_file(const char *path, char hex[65]);
void sha256_mem(const void *p, size_t n, char hex[65]);
/* 64-bit FNV-1a, chainable: start with FNV_INIT. */
#define FNV_INIT 0xcbf29ce484222325u
uint64_t fnv1a(uint64_t h, const void *p, size_t n);
/* A number for a table of a power of two: every bit of h has its say in every bit of it.  One product alone leaves
 * numbers that differ in their upper bits on one place. */
static inline uint64_t mix64(uint64_t h)
{
    h = (h ^ h >> 32) * 0x9e3779b97f4a7c15u;
    h = (h ^ h >> 32) * 0xd6e8feb86659fd93u;
    return h ^ h >> 32;
}

#endif
