"""Answers "how many requests fit at once?" from model, GPU and engine flags. Pure: no sockets, no clock."""
