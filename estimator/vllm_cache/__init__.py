"""vLLM 0.32's KV cache, from a model, a GPU and flags: its pages, its groups, its blocks."""
