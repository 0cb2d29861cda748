"""Which samples and which task a device sees, step by step. Imports nothing else of the client."""
