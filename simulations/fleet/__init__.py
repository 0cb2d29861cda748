"""The fleet of an experiment: profiles, mixes of them, and the server's view built from both. May import `simulations.config`."""
