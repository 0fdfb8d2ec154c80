// Every kernel, in one module.
#include "attention.cu"
#include "block.cu"
#include "dense.cu"
#include "product.cu"
#include "round.cu"
#include "sample.cu"
