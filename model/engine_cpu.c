#include "model/engine_impl.h"
int engine_cpu(struct model *m, const struct engine_options *o, struct engine_way *out)
{
    (void)m; (void)o; (void)out;
    return 0;
}
