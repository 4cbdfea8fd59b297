"""What is asked for: filters, limits, machinery; from text and from Python values."""
