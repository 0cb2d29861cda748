"""Experiments: configuration, data, engines, results and the command line."""
