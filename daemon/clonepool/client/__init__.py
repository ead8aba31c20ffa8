"""What test runners import. The synchronous client needs the standard library alone."""

from clonepool.client.sync import Client, Lease, lease

__all__ = ["Client", "Lease", "lease"]
