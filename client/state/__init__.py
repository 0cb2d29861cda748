"""What a device keeps between rounds, as values and as bytes, and how payloads change it. May import `client.streams` and `.config`."""
