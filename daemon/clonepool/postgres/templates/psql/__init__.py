"""psql scripts: read as psql reads them, kept inside their database, and run."""
