"""Data sets from files to arrays, and their splits over devices and tasks. May import `simulations.config`."""
