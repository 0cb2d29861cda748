"""How a round runs: messages out, replies in, the virtual clock, both modes. May import every other room of the server."""
