// Products on matrix cores with weights of Q3_K: see matmul_core.h.

#include "matmul_core.h"

MATMUL_CORE(q3_k, CoreWeights<Q3_K>)
