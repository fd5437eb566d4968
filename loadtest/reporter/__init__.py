"""Rows in, one signed number out."""
