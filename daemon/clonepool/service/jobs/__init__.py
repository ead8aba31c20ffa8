"""Background work, one file per decision."""
