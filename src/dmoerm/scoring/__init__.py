"""Scoring of whole files: the rows, the output formats, and shards of the input."""
