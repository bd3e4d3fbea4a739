"""Published networks with published latencies, as kernels: for benchmarks of the cost models only."""
