// Products on matrix cores with weights of Q5_0: see matmul_core.h.

#include "matmul_core.h"

MATMUL_CORE(q5_0, CoreWeights<Q5_0>)
