"""The lease protocol, daemon side: the socket, access to it, one file per group of methods."""
