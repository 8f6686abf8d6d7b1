"""Across the federation: training without moving raw images. The only floor that imports flwr or torch."""
