"""A run's folder: what it leaves behind, how it is shown, and what it needs to be resumed. May import `simulations.run` and below."""
