"""How the command line speaks and ends: messages, signals. The commands themselves are `simulations.__main__`."""
