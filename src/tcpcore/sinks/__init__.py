"""Where events go: table, JSON, CSV; descriptors and files."""
