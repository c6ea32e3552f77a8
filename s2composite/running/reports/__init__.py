"""Reports: how far a job is, and what became of it."""
