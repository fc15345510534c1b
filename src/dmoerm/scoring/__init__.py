"""Scoring of whole files: the rows that are written, where they are written, and files in pieces."""
