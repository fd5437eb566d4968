"""LMDeploy 0.18: its defaults, its two engines' memory rules and the KV cache they leave (budget.py)."""
