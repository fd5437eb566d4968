"""Bytes of weights on one rank: from safetensors headers when at hand, by arithmetic if not."""
