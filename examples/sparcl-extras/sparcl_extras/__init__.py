"""Things of your own for SparCL Fleet."""
