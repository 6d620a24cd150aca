// Products on matrix cores with weights of Q8_0: see matmul_core.h.

#include "matmul_core.h"

MATMUL_CORE(q8_0, CoreWeights<Q8_0>)
