/* pairs.h: pair records (train.json, val.json, test.json, the retrieval pairs), read and
 * written one record at a time.
 *
 * The file is a JSON array of flat objects, written as Python's json.dump(indent=4):
 *
 *     [
 *         {
 *             "id_original": "00000050",
 *             "caption": "A round flange with six bolt holes.",
 *             "id_retrieve": "00000073",
 *             "relavant_step_file": "DATA;\n#1=...",
 *             "output": "DATA;\n#1=..."
 *         }
 *     ]
 *
 * ("relavant" is the format's spelling.)  id_original, caption and output are due in each
 * record; the other two may be lacking or null.  Ids may be JSON integers.  Other fields are skipped.
 *
 *     struct pairs *r;
 *     struct pair p;
 *     int rc = pairs_open("train.json", &r);
 *     while (rc >= 0 && (rc = pairs_next(r, &p)) > 0)
 *         ... p.caption ...                 // borrowed until the next pairs_next()
 *     pairs_close(r);                       // rc 0: end; negative: error
 *
 * Memory: one record, whatever the file's size.
 */
#ifndef LIB_PAIRS_H
#define LIB_PAIRS_H

#include <stddef.h>
#include <stdint.h>

struct pair {
    const char *id_original, *caption;
    const char *id_retrieve; /* NULL if none */
    const char *retrieved;   /* "relavant_step_file"; NULL if none */
    const char *output;
    /* of a record read */
    size_t index;            /* 0-based in the file */
    uint64_t offset;         /* byte offset of its '{', for pairs_seek() */
};

struct pairs;

int pairs_open(const char *path, struct pairs **out); /* ERR_IO; ERR_FORMAT: no array */
/* 1: *p is the next record; 0: the end.  ERR_FORMAT names file, record (1-based) and byte offset. */
int pairs_next(struct pairs *r, struct pair *p);
/* The next pairs_next() reads the record at offset (one that was read before); its index is
 * `index`.  May be used in any order: for shuffled access without holding the file. */
void pairs_seek(struct pairs *r, uint64_t offset, size_t index);
uint64_t pairs_size(const struct pairs *r); /* bytes of the file, for progress */
void pairs_close(struct pairs *r);          /* NULL is fine */

struct pairs_writer;

/* The file appears at pairs_commit(), whole. */
int pairs_create(const char *path, struct pairs_writer **out);
/* NULL id_retrieve and retrieved are left out. */
int pairs_put(struct pairs_writer *w, const struct pair *p);
int pairs_commit(struct pairs_writer *w); /* frees w either way */
void pairs_abort(struct pairs_writer *w); /* NULL is fine */

#endif
