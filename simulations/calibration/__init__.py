"""A device profile from measurements on this machine. May import what a run may, but not its results."""
