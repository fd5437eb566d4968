"""What each family of models caches and holds, a reader an architecture: the rooms that know HF's keys."""
