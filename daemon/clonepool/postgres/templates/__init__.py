"""Templates on the server: what goes into one, how it is built, and which generations exist."""
