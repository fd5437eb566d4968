"""Loads a running server, watches it, and turns the rows into one signed number."""
