"""Benchmarks of exported kernels beside their peers, each in a process of its own."""
