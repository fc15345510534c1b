"""Training and scoring on a Ray cluster: Ray schedules, retries and holds the actors; results lie in files."""
