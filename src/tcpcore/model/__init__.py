"""What a tool is: its events, columns and hooks."""
