"""The names that the HTTP port answers to: no web page may read it through a browser.

A foreign page can have its own name point to 127.0.0.1 (DNS rebinding); the browser then sends that
name as `Host`. In this way it never sends an address, nor a name that only this machine has.
"""

from __future__ import annotations

import ipaddress
import socket
from typing import TYPE_CHECKING

from starlette.datastructures import Headers
from starlette.responses import PlainTextResponse

if TYPE_CHECKING:
    from collections.abc import Iterable

    from starlette.types import ASGIApp, Receive, Scope, Send

MISDIRECTED = 421
_LOCAL = "localhost"


class Hosts:
    """An application that answers to local names, addresses, and configured names.

    Args:
        app: makes the responses.
        names: the configured names.
    """

    def __init__(self, app: ASGIApp, names: Iterable[str]) -> None:
        self._app = app
        own = socket.gethostname()
        self._names = {_plain(name) for name in (*names, own, _LOCAL)}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Respond, or refuse."""
        host = Headers(scope=scope).get("host", "")
        if not host or self._is_known(host):  # a browser always sends one
            await self._app(scope, receive, send)
            return
        refusal = PlainTextResponse(
            "this name is not answered here: ask by address, or name it in http.hosts of the"
            " configuration\n",
            MISDIRECTED,
        )
        await refusal(scope, receive, send)

    def _is_known(self, host: str) -> bool:
        name = _plain(host)
        return name in self._names or name.endswith(f".{_LOCAL}") or _is_address(name)


def _plain(host: str) -> str:
    """Return a name or address in lower case, without port, brackets and final dot."""
    if host.startswith("["):
        return host[1:].partition("]")[0].lower()
    name = host if host.count(":") > 1 else host.partition(":")[0]
    return name.lower().removesuffix(".")


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True
