"""Capability labels from an LLM judge: the question, its answer, the record of all calls, the labels' quality."""
