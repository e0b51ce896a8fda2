"""Scores of generated samples, such as FID, sFID, Inception Score, precision and recall."""
