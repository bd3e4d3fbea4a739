"""The questions: one YAML file each, and the benchmarks."""
