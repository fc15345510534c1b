"""Capability labels by an LLM judge: the question, its answer, and the record of everything that was asked."""
