"""Runs of jobs: plans, ledgers, products, reports."""
