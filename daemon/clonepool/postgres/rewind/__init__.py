"""Rewinding: what a lease changed in its clone is found and undone in place."""
