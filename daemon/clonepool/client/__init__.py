"""The synchronous client, which test runners import; it needs only the standard library.

`clonepool` re-exports the names in `__all__`, and they are public under both. The modules of this
package are not: `sync` has the client and `lease`, `lease` and `definition` what they return,
`holding` what these have in common, `leaks` the warnings, `connection` and `calls` the transport.
"""

from clonepool.client.definition import Definition
from clonepool.client.leaks import LeakWarning
from clonepool.client.lease import Lease
from clonepool.client.sync import Client, lease

__all__ = ["Client", "Definition", "LeakWarning", "Lease", "lease"]
