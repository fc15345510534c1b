"""Benchmarks of speed and memory beside named peers."""
