// Products on matrix cores with weights of F16: see matmul_core.h.

#include "matmul_core.h"

MATMUL_CORE(f16, CoreFloats<CoreF16>)
