// Products on matrix cores with weights of Q5_1: see matmul_core.h.

#include "matmul_core.h"

MATMUL_CORE(q5_1, CoreWeights<Q5_1>)
