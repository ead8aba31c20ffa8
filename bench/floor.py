"""The smallest comparable server in Python: uvloop, lines, parsed JSON, a constant result.

    python floor.py SOCKET RESULT

RESULT is the JSON that answers every request: that of an acquire, so that the client reads as much
as from the daemon.
"""

from __future__ import annotations

import asyncio
import json
import sys
from typing import cast

import uvloop


class Floor(asyncio.Protocol):
    """Answer every line with the same result."""

    def __init__(self, result: bytes) -> None:
        self._result = result
        self._rest = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Remember where to write."""
        self._transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        """Parse each line, reply with its id."""
        *lines, self._rest = (self._rest + data).split(b"\n")
        for line in lines:
            request = json.loads(line)
            reply = b'{"jsonrpc":"2.0","id":%d,"result":%b}\n' % (request["id"], self._result)
            self._transport.write(reply)


async def main(path: str, result: bytes) -> None:
    """Serve until killed."""
    server = await asyncio.get_running_loop().create_unix_server(lambda: Floor(result), path)
    await server.serve_forever()


if __name__ == "__main__":
    uvloop.run(main(sys.argv[1], sys.argv[2].encode()))
