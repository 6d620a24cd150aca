// Products on matrix cores with weights of Q4_0: see matmul_core.h.

#include "matmul_core.h"

MATMUL_CORE(q4_0, CoreWeights<Q4_0>)
