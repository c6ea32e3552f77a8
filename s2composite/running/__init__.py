"""Many windows, many hours: jobs, plans, reports."""
