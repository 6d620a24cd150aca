// Products on matrix cores with weights of Q4_K: see matmul_core.h.

#include "matmul_core.h"

MATMUL_CORE(q4_k, CoreWeights<Q4_K>)
