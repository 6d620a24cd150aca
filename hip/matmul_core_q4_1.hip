// Products on matrix cores with weights of Q4_1: see matmul_core.h.

#include "matmul_core.h"

MATMUL_CORE(q4_1, CoreWeights<Q4_1>)
