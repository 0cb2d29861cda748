"""Figures of continual learning and of fairness, from accuracy matrices and curves. Imports nothing of ours."""
