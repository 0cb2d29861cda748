"""The command line, the only place that prints: commands, their options, messages, signals. May import all of `simulations`."""
