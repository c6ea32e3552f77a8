"""Clusters: options and start of each kind, connect(), and checks of what every worker has and can reach."""
