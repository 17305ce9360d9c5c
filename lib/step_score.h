/* step_score.h: what the tools that score STEP files by their text share: which files. */
#ifndef LIB_STEP_SCORE_H
#define LIB_STEP_SCORE_H

#include "lib/files.h"

/* Adds the files of an argument: a file itself, of a directory all .step and .stp files
 * below it.  Paths are as they can be opened; .rel is relative to the argument. */
int score_files(struct file_list *l, const char *path);

/* The original's layout DIR/SAMPLE/<sub>/NAME.step: the .step files of each sample in
 * the order of samples and names, and to `lacking` the samples without such a folder.
 * False: DIR is not laid out so (no sample has the folder). */
bool score_samples(struct file_list *l, struct file_list *lacking, const char *dir, const char *sub);

#endif
