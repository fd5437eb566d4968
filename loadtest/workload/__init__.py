"""What is asked of the server: scenario and seed in, requests and the times they are due out. Pure."""
