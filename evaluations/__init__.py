"""Scores of sample batches: FID, sFID, Inception Score, precision, recall, KID, density, coverage."""
