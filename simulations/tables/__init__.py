"""Published tables of ours, from one command each. May import `simulations.results` and below."""
