"""All that can be named, with a line for each, and what of other packages a run uses. May import `simulations.config` and `.fleet`."""
