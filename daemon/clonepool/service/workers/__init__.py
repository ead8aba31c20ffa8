"""Background work, one kind a file: making clones, recycling, dropping, building, watching."""
