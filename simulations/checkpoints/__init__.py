"""A run on disk as it was at the end of a round. May import `simulations.engine` and below."""
