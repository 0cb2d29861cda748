"""The model that all share: masks, statistics, the server's optimiser, and what is sent. May import `server.aggregation`, `.defence`."""
