// Products on matrix cores with weights of BF16: see matmul_core.h.

#include "matmul_core.h"

MATMUL_CORE(bf16, CoreFloats<CoreBF16>)
