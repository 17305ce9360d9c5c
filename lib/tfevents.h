/* tfevents.h: scalars as TensorBoard reads them.
 *
 *     struct tfevents *t;
 *     tfevents_open("runs/qwen/tensorboard", -1, &t);       // a new file in the folder
 *     tfevents_scalar(t, step, "train/loss", 0.25);
 *     tfevents_close(t);
 *
 * The file is a row of records, each: length (uint64, little-endian), masked CRC-32C of those 8 bytes, the bytes of an Event, their
 * masked CRC-32C.  An Event is a protocol buffer (tensorflow/core/util/event.proto): wall_time = 1 (double), step = 2
 * (int64), file_version = 3 (string), summary = 5 { value = 1 { tag = 1, simple_value = 2 (float) } }, session_log = 7.
 */
#ifndef LIB_TFEVENTS_H
#define LIB_TFEVENTS_H

#include <stddef.h>
#include <stdint.h>

struct tfevents;

/* resumed: the step after which this run goes on, or -1; TensorBoard then drops what earlier files of the folder hold beyond
 * it.  ERR_IO. */
int tfevents_open(const char *dir, int64_t resumed, struct tfevents **out);
int tfevents_scalar(struct tfevents *t, int64_t step, const char *tag, double value);
int tfevents_flush(struct tfevents *t);
void tfevents_close(struct tfevents *t); /* NULL is fine */

uint32_t crc32c(const void *p, size_t n);

#endif
