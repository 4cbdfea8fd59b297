"""Tests that need neither root nor a kernel that traces."""
