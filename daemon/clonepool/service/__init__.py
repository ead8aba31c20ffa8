"""The async shell around the core: it does what the core decides."""
