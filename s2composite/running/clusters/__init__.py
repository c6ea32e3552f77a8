"""Clusters: their options, one room for each kind; connect(); what every worker has and can reach."""
