"""Benchmarks: times and sizes relative to a bare PyTorch loop on the same machine, and comparisons of methods."""
