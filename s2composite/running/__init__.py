"""Many windows, many hours: jobs, clusters, reports."""
