"""Clusters: one table of backends, connect(), and checks of what every worker has and can reach."""
