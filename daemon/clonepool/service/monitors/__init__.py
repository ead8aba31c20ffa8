"""Background services that watch something and report what they see, one per file."""
