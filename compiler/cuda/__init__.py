"""Compiling for NVIDIA GPUs: device source, nvcc, facts of the machine code, images in objects."""
