"""Benchmarks: questions about the product itself. Run by `make bench`; never timed tests."""
