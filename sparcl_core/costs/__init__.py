"""What training takes, counted from shapes and masks: FLOPs, memory, and by a device's profile seconds and joules."""
