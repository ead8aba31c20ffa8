"""Background loops, one file each: work that no decision starts."""
