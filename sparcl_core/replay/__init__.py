"""What a device keeps of what it has seen: the rehearsal buffer, and all that it remembers between sessions."""
