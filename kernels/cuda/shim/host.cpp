// The kernels and what runs them, for the host.
#include "simt.cpp"
#include "../all.cu"
