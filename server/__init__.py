"""The server's side: the round loop, the strategy, what is broadcast, how updates are averaged, and the ledger."""
