"""The synchronous client, which test runners import. It needs the standard library alone."""

from clonepool.client.definition import Definition
from clonepool.client.leaks import LeakWarning
from clonepool.client.lease import Lease
from clonepool.client.sync import Client, lease

__all__ = ["Client", "Definition", "LeakWarning", "Lease", "lease"]
