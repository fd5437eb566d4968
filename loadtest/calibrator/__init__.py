"""Light load that measures what a server's steps cost, so that the twin can stand in for it."""
