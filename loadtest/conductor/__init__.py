"""How many users, and when; the only wing that listens to Locust."""
