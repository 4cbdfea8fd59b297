"""What the kernel does not tell of an event."""
