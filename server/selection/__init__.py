"""Who is asked to train in a round, and how sparse: estimates, policies, tiers. May import `server.fleet` and what that may import."""
