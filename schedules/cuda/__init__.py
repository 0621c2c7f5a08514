"""CUDA templates: native TIRx kernels and the host functions that launch them."""
