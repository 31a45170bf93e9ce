"""Command lines: the only place where flags are defined."""
