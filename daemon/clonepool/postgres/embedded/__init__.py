"""The server that the daemon starts itself: binaries, storage, cluster, postmaster."""
