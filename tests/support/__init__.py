"""What several tests need: servers, daemons, processes that end."""
