"""Federated training across the region: plans, consent-bound cohorts, Flower, models.

The only floor that imports flwr or torch, and only in child processes: nothing that a daemon imports
(`plans`, `cohort`, `site`, `runs`, `models`, `api`) loads either.
"""
