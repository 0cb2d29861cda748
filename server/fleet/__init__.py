"""Who the devices are, when they are there, and what is in their batteries. May import: `server.errors`, `.snapshot`, `.ledger`."""
