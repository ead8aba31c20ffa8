"""clonepool: warm PostgreSQL clones for tests, leased over a Unix socket.

    import clonepool

    with clonepool.lease("blog") as db:
        connect(db.url)

Importing this needs the standard library alone.
"""

from clonepool.client import Client, Definition, LeakWarning, Lease, lease

__all__ = ["Client", "Definition", "LeakWarning", "Lease", "lease"]
