"""A DMoERM inside the trainers that people use, one file a trainer; each imports no more than it needs."""
