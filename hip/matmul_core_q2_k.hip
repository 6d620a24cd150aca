// Products on matrix cores with weights of Q2_K: see matmul_core.h.

#include "matmul_core.h"

MATMUL_CORE(q2_k, CoreWeights<Q2_K>)
