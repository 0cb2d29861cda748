"""How a round runs: messages out, replies in, the virtual clock, both kinds of rounds. May import every other room of the server."""
