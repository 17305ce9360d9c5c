/* step_prep.h: what prepares STEP files for training and brings generated ones back.
 *
 *     raw file -> step_round() -> step_restructure() -> training text
 *     generated text -> step_restore() -> a valid file
 *
 * All take a whole text and append the result to a buffer; linear in the text, no
 * recursion.  ERR_FORMAT with "NAME:LINE:COLUMN: ..." when the text is not Part 21.
 * step_reference.h has the original project's versions of the three.
 */
#ifndef LIB_STEP_PREP_H
#define LIB_STEP_PREP_H

#include "lib/step.h"

/* ---- rounding ---- */
struct step_round_opts {
    int decimals;    /* kept behind the point for lengths in millimetres or smaller units */
    int significant; /* but never fewer significant digits than this; 0: small values become 0. */
    double flush;    /* values below this in size become 0. all the same */
};
#define STEP_ROUND_DEFAULT ((struct step_round_opts){.decimals = 6, .significant = 1})
struct step_round_report {
    size_t reals, changed; /* real parameters seen, and those whose value changed */
    double unit_mm;        /* the largest length unit of the file; 0: none is given */
    int decimals;          /* kept in this file: more when its unit is coarse */
};
/* Rounds the reals of the instances, half to even on the decimal digits as written, and
 * spells them shortest ("1.5", "0.", "1.E-9").  Everything else stays to the byte:
 * strings, comments, header, integers, and the factors of *_MEASURE_WITH_UNIT, which
 * define units.  Decimals grow by the decades of the length unit over a millimetre, so
 * that a part in metres does not move. */
int step_round(const char *name, const char *text, size_t n, const struct step_round_opts *opts, struct buf *out,
               struct step_round_report *report);

/* ---- order and annotations ---- */
struct step_restructure_report {
    size_t entities, roots;
    size_t forward;     /* references to an instance that stands later in the output */
    size_t cyclic;      /* references that close a cycle: children-first, only these point forward */
    size_t dangling;    /* references to nothing; kept, as ids above all others */
    size_t skipped;     /* sections of edition 3, which are left out: a signature or an anchor would not fit any more */
    uint64_t cycle[2];  /* the first such reference: from, to, in the ids of the input */
};
enum step_order { STEP_CHILDREN_FIRST, STEP_PARENT_FIRST, STEP_ORIGINAL };
struct step_restructure_opts {
    enum step_order order;
    bool compact; /* no instance names, references as distances: see below */
    bool relative; /* compact: points as differences where that tells more: see below */
    bool bare;    /* no comments */
    bool geometry_first; /* the curve of an edge ahead of its vertices, the surface of a face ahead of its bounds */
    /* children-first: gets a struct step_forward for each reference that still points forward; or NULL */
    struct buf *forward;
};
struct step_forward {
    uint64_t from, to;         /* numbers of the output */
    uint64_t old_from, old_to; /* of the input */
};
/* Writes every instance once, lean, one a line, numbered from 1, in depth-first order
 * from the roots (instances nobody refers to): children before parents, or the reverse.
 * Roots stand in sections by type, each under a comment; those that refer to nothing
 * come last.  Data sections stay apart; children-first, one that another refers to comes ahead of it.  STEP_ORIGINAL: as the file has them, without sections. */
int step_restructure(const char *name, const char *text, size_t n, const struct step_restructure_opts *opts,
                     struct buf *out, struct step_restructure_report *report);

/* ---- the compact form ----
 * The k-th instance of the file (from 1, over all data sections) is #k: its name and '=' are left out, and
 * within it #d is the instance d lines before, #-d the one d lines behind, #0 itself.  Nothing else
 * differs, so the form is undone without loss:
 *
 *     #1=CARTESIAN_POINT('',(0.,0.,5.));     CARTESIAN_POINT('',(0.,0.,5.));
 *     #2=VERTEX_POINT('',#1);                VERTEX_POINT('',#1);
 *     #3=DIRECTION('',(0.,0.,1.));           DIRECTION('',(0.,0.,1.));
 *     #4=EDGE_CURVE('',#2,#2,#9,.T.);        EDGE_CURVE('',#2,#2,#-5,.T.);
 */
/* Points may be written as differences: one whose name begins with '+' (which is no part of it) is the sum of its numbers and
 * of the point met last; a name that begins with '+' or '-' in truth gets a '-' ahead.  A point is met where it is
 * written, and where an instance is that stands for it: a line for its origin, a placement, and what lies in it, for its
 * origin, a vertex for its point, an oriented edge for the vertex where it ends, anything else for what its first reference
 * stands for.  So an edge's end is told by its direction, and a hole's seam by its radius:
 *
 *     CIRCLE('',#1,2.5);                     a circle round (40.,-12.5,6.)
 *     CARTESIAN_POINT('+',(2.5,0.,0.));      (42.5,-12.5,6.)
 */
/* What is needed to follow that through a text, instance after instance. */
struct step_points {
    struct step_point {
        int64_t v[3]; /* in units of 1E-9 */
        int n;        /* coordinates; 0: not known */
    } *point;         /* from 1 */
    struct {
        uint32_t start, end; /* points that an instance stands for, where it begins and ends; 0: none */
    } *of;                   /* by number */
    size_t n_points, cap_points, cap;
    uint32_t last; /* the point met last, or 0 */
};
/* Instance number self in the compact form, points as they are (no sums). */
void step_points_meet(struct step_points *p, uint64_t self, const char *s, size_t n);
/* The instance at s as a difference to the point met last; false: it is no such point, or there is none.  zeros: how many
 * coordinates are zero, as it is and as a difference. */
bool step_point_relative(const struct step_points *p, const char *s, size_t n, struct buf *out, int zeros[2]);
void step_points_release(struct step_points *p);
/* Of the instance at out's byte `from`: a point's name that begins as a mark does gets the '-' ahead. */
void step_point_mark(size_t from, struct buf *out);

/* Whether a text (a file, or from DATA; on, or from its first instance on) is in the compact form: its first
 * instance has no name. */
bool step_is_compact(const char *text, size_t n);
/* The text with its names back; everything else to the byte.  It need not be well formed: what follows
 * damage is named as far as ';' outside strings tell the instances apart.  A distance that leads out of the file
 * names an instance that is not there. */
void step_expand(const char *text, size_t n, struct buf *out);

/* ---- back to plain Part 21 ---- */
struct step_restore_report {
    size_t comments;   /* removed */
    size_t resolved;   /* #ID_k placeholders whose key was given */
    size_t guessed;    /* ... whose instance was told by its type */
    size_t dropped;    /* ... that were removed, or became $ */
    size_t empty;      /* missing parameters filled in */
    size_t duplicates; /* instances repeated word for word, removed */
    bool header;       /* a header was supplied */
    bool compact;      /* the text was in the compact form */
};
/* Removes comments, resolves placeholders, mends what models are known to emit, puts a
 * standard header before a bare data part, and cuts what follows END-ISO-10303-21;.  The compact form is
 * expanded first (columns of errors are then those of the expanded line).
 * One statement a line.  On ERR_FORMAT (nothing that can be mended) out holds the text
 * as far as it was mended; the place is one of the given text. */
int step_restore(const char *name, const char *text, size_t n, struct buf *out, struct step_restore_report *report);

#endif
