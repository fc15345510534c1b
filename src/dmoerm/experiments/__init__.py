"""Experiments: comparisons of methods, best-of-n, policy optimization, public benchmarks, LLM judges."""
