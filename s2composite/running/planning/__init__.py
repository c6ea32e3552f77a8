"""Planning: what a job will take, before anything is read but headers."""
