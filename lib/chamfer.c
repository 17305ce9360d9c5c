#include "lib/chamfer.h"

#include <malloc.h>
#include <math.h>
#include <openssl/evp.h>
#include <stdlib.h>

#include "lib/err.h"
#include "lib/files.h"

struct part_request chamfer_request(const struct chamfer_opts *o)
{
    if (o->reference)
        return (struct part_request){.flags = PART_MESH, .root = 1, .deflection = 0.1};
    return (struct part_request){.flags = PART_MESH | PART_PROPERTIES | PART_CHECK, .root = 0, .deflection = 0.001,
                                 .relative = true};
}

int chamfer_seed(const char *truth_path, const char *pred_path, uint32_t *seed)
{
    struct file_map a = {0}, b = {0};
    unsigned char digest[EVP_MAX_MD_SIZE];
    EVP_MD_CTX *md = EVP_MD_CTX_new();
    int rc = file_map(truth_path, 0, &a);
    if (rc == ERR_OK)
        rc = file_map(pred_path, 0, &b);
    if (rc == ERR_OK && !(md && EVP_DigestInit_ex(md, EVP_md5(), NULL) && EVP_DigestUpdate(md, a.data, a.size) &&
                          EVP_DigestUpdate(md, b.data, b.size) && EVP_DigestFinal_ex(md, digest, NULL)))
        rc = err_set(ERR_EXTERN, "OpenSSL has no MD5");
    if (rc == ERR_OK)
        *seed = (uint32_t)digest[0] << 24 | (uint32_t)digest[1] << 16 | (uint32_t)digest[2] << 8 | digest[3];
    EVP_MD_CTX_free(md);
    file_unmap(&a);
    file_unmap(&b);
    return rc;
}

static double box_volume(const double *xyz, size_t n)
{
    double min[3] = {INFINITY, INFINITY, INFINITY}, max[3] = {-INFINITY, -INFINITY, -INFINITY};
    for (size_t i = 0; i < 3 * n; i++) {
        min[i % 3] = fmin(min[i % 3], xyz[i]);
        max[i % 3] = fmax(max[i % 3], xyz[i]);
    }
    return (max[0] - min[0]) * (max[1] - min[1]) * (max[2] - min[2]);
}

static bool sample(const struct part *p, const struct chamfer_opts *o, uint32_t seed, size_t n, double *out)
{
    const struct part_mesh *m = &p->mesh;
    bool ok = o->reference ? sample_reference(m->points, m->triangles, m->n_triangles, seed, n, out)
                           : sample_even(m->points, m->triangles, m->n_triangles, n, out);
    return ok && cloud_finite(out, n);
}

void chamfer_score(const struct part *truth, const struct part *pred, const struct chamfer_opts *o, struct chamfer_score *s)
{
    size_t n = o->points ? o->points : 2000;
    double *g = xmalloc(6 * n * sizeof *g), *p = g + 3 * n;
    memset(s, 0, sizeof *s);
    s->box_ratio = NAN;
    s->seed = o->seed;
    if (!sample(truth, o, o->seed, n, g)) {
        s->reason = "degenerate_truth";
        goto out;
    }
    if (!sample(pred, o, o->seed + 1, n, p)) {
        s->reason = "degenerate_pred";
        goto out;
    }
    s->scale = cloud_rms(g, n);
    s->noise = truth->mesh_area / (3.141592653589793 * (double)n * s->scale * s->scale);
    double over;
    if (o->reference) {
        reg_reference(p, n, g, n, o->seed, &s->ref);
        s->scale_pred = cloud_rms(p, n);
        s->cd = s->ref.forward;
        s->cd_two_sided = s->ref.forward + s->ref.backward;
        over = o->average_scale ? (s->scale + s->scale_pred) / 2 : s->scale;
        over = over > 0 ? over * over : 1;
    } else {
        if (!reg_best(p, n, g, n, o->threshold > 0 ? o->threshold : 0.1, &s->best)) {
            s->reason = "degenerate_pred";
            goto out;
        }
        s->scale_pred = s->best.rms_p;
        over = s->scale * s->scale;
        s->cd = s->best.size_forward * over;
        s->cd_two_sided = (s->best.size_forward + s->best.size_backward) * over;
        rigid_apply(&s->best.size, p, n, p);
    }
    s->scd = s->cd / over;
    s->scd_two_sided = s->cd_two_sided / over;
    double box = box_volume(g, n);
    if (box > 0)
        s->box_ratio = box_volume(p, n) / box;
    s->ok = isfinite(s->scd) && isfinite(s->scd_two_sided);
    s->reason = s->ok ? NULL : "not_finite";
out:
    free(g);
}

static void put_part(struct jw *j, const char *key, const struct part *p, bool reference)
{
    jw_key(j, key);
    jw_object(j);
    jw_kv_int(j, "triangles", (int64_t)p->mesh.n_triangles);
    jw_kv_real(j, "mesh_area", p->mesh_area);
    jw_kv_real(j, "mesh_volume", p->mesh_volume);
    jw_key(j, "bbox");
    jw_array(j);
    for (int k = 0; k < 6; k++)
        jw_real(j, p->box[k]);
    jw_end(j);
    jw_kv_int(j, "solids", p->n_solids);
    jw_kv_int(j, "faces", p->n_faces);
    if (!reference) {
        jw_kv_bool(j, "closed", p->n_shells && p->n_closed_shells == p->n_shells);
        jw_kv_bool(j, "valid", p->checked && p->valid && !part_gaps(p));
        jw_kv_real(j, "volume", p->volume);
        jw_kv_real(j, "area", p->area);
    }
    jw_end(j);
}

void chamfer_put(struct jw *j, const struct part *truth, const struct part *pred, const struct chamfer_opts *o,
                 const struct chamfer_score *s)
{
    const struct reg_best *b = &s->best;
    jw_kv_str(j, "align", o->reference ? "reference" : "best");
    if (s->ok) {
        jw_kv_real(j, "cd", s->cd);
        jw_kv_real(j, "scale", s->scale);
        jw_kv_real(j, "scd", s->scd);
        jw_kv_real(j, "scd_two_sided", s->scd_two_sided);
        jw_kv_real(j, "cd_two_sided", s->cd_two_sided);
        jw_kv_real(j, "scale_pred", s->scale_pred);
        jw_kv_real(j, "noise", s->noise);
        jw_kv_real(j, "bbox_ratio", s->box_ratio);
        if (o->reference) {
            jw_kv_int(j, "seed", s->seed);
            jw_kv_int(j, "correspondences", (int64_t)s->ref.correspondences);
            jw_kv_int(j, "ransac_iterations", (int64_t)s->ref.iterations);
            jw_kv_real(j, "ransac_fitness", s->ref.ransac_fitness);
            jw_key(j, "icp");
            jw_array(j);
            for (int k = 0; k < 3; k++) {
                jw_array(j);
                jw_real(j, s->ref.icp[k].fitness);
                jw_real(j, s->ref.icp[k].rmse);
                jw_end(j);
            }
            jw_end(j);
        } else {
            double f = b->precision + b->recall;
            jw_kv_real(j, "shape_scd", b->shape_forward);
            jw_kv_real(j, "shape_scd_two_sided", b->shape_forward + b->shape_backward);
            jw_kv_real(j, "size_ratio", s->scale_pred / s->scale);
            jw_kv_real(j, "volume_ratio", pred->volume / truth->volume);
            jw_kv_real(j, "area_ratio", pred->area / truth->area);
            jw_kv_real(j, "precision", b->precision);
            jw_kv_real(j, "recall", b->recall);
            jw_kv_real(j, "f_score", f > 0 ? 2 * b->precision * b->recall / f : 0);
            jw_kv_real(j, "threshold", o->threshold > 0 ? o->threshold : 0.1);
            jw_key(j, "rotation");
            jw_array(j);
            for (int k = 0; k < 9; k++)
                jw_real(j, b->size.r[k]);
            jw_end(j);
            jw_key(j, "translation");
            jw_array(j);
            for (int k = 0; k < 3; k++)
                jw_real(j, b->size.t[k]);
            jw_end(j);
        }
    }
    put_part(j, "truth_part", truth, o->reference);
    put_part(j, "pred_part", pred, o->reference);
}

double chamfer_reward(double scd, double lower, double upper)
{
    if (!(scd <= upper)) /* and NaN, which the original rewards in full */
        return 0;
    if (scd <= lower)
        return 1;
    return 1 - (scd - lower) / (upper - lower);
}

void chamfer_keep_memory(void)
{
    mallopt(M_MMAP_THRESHOLD, 32 << 20); /* the most that it takes */
    mallopt(M_TRIM_THRESHOLD, 256 << 20);
}
