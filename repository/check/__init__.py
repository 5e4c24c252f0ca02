"""Verifying a repository without writing to it."""
