"""What keeps one bad device from spoiling the model: clipping, refusal, rolling back. May import `server.aggregation`."""
