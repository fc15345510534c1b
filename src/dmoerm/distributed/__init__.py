"""Training and scoring on a Ray cluster: Ray schedules and retries the work; results are written to files."""
