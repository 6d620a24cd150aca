// Products on matrix cores with weights of Q5_K: see matmul_core.h.

#include "matmul_core.h"

MATMUL_CORE(q5_k, CoreWeights<Q5_K>)
