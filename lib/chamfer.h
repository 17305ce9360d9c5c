/* chamfer.h: the scaled Chamfer distance of two meshed parts, the original's and our own. */
#ifndef LIB_CHAMFER_H
#define LIB_CHAMFER_H

#include <stdbool.h>
#include <stdint.h>

#include "lib/json.h"
#include "lib/part.h"
#include "lib/register.h"

struct chamfer_opts {
    bool reference;
    size_t points;      /* 0: 2000 */
    double threshold;   /* of precision and recall, in the truth's RMS; 0: 0.1 */
    bool average_scale; /* reference: scale by the mean of both RMS, the default of the original's command */
    uint32_t seed;      /* reference */
};

struct chamfer_score {
    bool ok;
    const char *reason; /* "degenerate_pred", ... when not ok */
    double cd, cd_two_sided;   /* mm^2: truth to prediction; the sum of both directions */
    double scale;              /* mm: RMS distance of the truth's points from their centroid */
    double scd, scd_two_sided; /* over scale squared */
    double scale_pred;
    double noise;              /* of scd: what equal shapes score for the points' randomness, A / (pi N rms^2) */
    uint32_t seed;
    struct reg_reference ref;  /* reference */
    struct reg_best best;      /* else */
    double box_ratio;          /* volume of the aligned boxes, prediction over truth; NAN if the truth's is flat */
};

/* The request whose part fits the opts (reference: root 1, deflection 0.1 mm; else all roots,
 * a thousandth of the diagonal, measured and checked). */
struct part_request chamfer_request(const struct chamfer_opts *o);

/* First 8 hex digits of the MD5 of both texts, truth first: the original's seed. */
int chamfer_seed(const char *truth_path, const char *pred_path, uint32_t *seed);

/* Both parts have status PART_OK. */
void chamfer_score(const struct part *truth, const struct part *pred, const struct chamfer_opts *o, struct chamfer_score *out);

/* The fields behind "status" of chamfer's JSON line. */
void chamfer_put(struct jw *j, const struct part *truth, const struct part *pred, const struct chamfer_opts *o,
                 const struct chamfer_score *s);

/* For programs that score many pairs: what a pair needs is kept for the next one, not given back to the system. */
void chamfer_keep_memory(void);

/* The original's reward: 1 up to lower, 0 beyond upper, linear between; 0 for what is not a number. */
double chamfer_reward(double scd, double lower, double upper);

#endif
