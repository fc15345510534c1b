"""The evidence behind the claims: generator, baselines, ablations, experiments and benchmarks; not in the wheel."""
