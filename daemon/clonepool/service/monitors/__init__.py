"""Background loops, one file each, for work that no decision of the core starts."""
