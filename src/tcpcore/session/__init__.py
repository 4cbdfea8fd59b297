"""A tool at work: attached, read, ended."""
