// Products on matrix cores with weights of Q6_K: see matmul_core.h.

#include "matmul_core.h"

MATMUL_CORE(q6_k, CoreWeights<Q6_K>)
