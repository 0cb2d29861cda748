"""What server and devices say to each other: messages as bytes, and updates coded with error feedback. May import `sparcl_core.codec`."""
