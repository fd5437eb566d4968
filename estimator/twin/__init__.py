"""A simulated server whose latency and saturation emerge from a paged-KV scheduler, not from a setting."""
