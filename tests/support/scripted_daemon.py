"""A daemon without databases, to test the client library against."""

from __future__ import annotations

import contextlib
import json
import socket
import threading
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pathlib import Path

ENV = {"DATABASE_URL": "postgresql:///x"}


class ScriptedConnection:
    """One connection."""

    def __init__(self, connected: socket.socket) -> None:
        self.socket = connected
        self.gone = False

    def send(self, **message: Any) -> None:
        """Send a line, unless the client has closed."""
        with contextlib.suppress(OSError):
            self.socket.sendall(json.dumps({"jsonrpc": "2.0", **message}).encode() + b"\n")

    def refuse(self, request: object, code: str) -> None:
        """Answer with an error."""
        error = {"code": -32000, "message": code, "data": {"code": code, "remedy": ""}}
        self.send(id=request, error=error)


class ScriptedDaemon:
    """Follows docs/protocol.md with a number of clones of any template, in threads of its own.

    Attributes:
        held: by token, the label of each lease.
        waiting: the acquires, resets and drains that are not answered, the first in line first.
        filling: the templates' names by the token of the fill.
        seen: the methods called, in order.
        garbage: lines that are no requests.
        knows_cancel: whether it knows the method `cancel`.
        deaf: while it is set, nothing is answered.
        leaves: what each lease leaves, as told at its release, or just before the next answer.
    """

    def __init__(self, place: Path, clones: int = 2) -> None:
        self.path = str(place / "scripted.sock")
        self.held: dict[str, str] = {}
        self.waiting: list[tuple[ScriptedConnection, Any, str, dict[str, Any]]] = []
        self.filling: dict[str, str] = {}
        self.seen: list[str] = []
        self.garbage: list[bytes] = []
        self.connections: list[ScriptedConnection] = []
        self.deaf = threading.Event()
        self.leaves: list[dict[str, Any]] = []
        self._news: list[tuple[ScriptedConnection, dict[str, Any]]] = []
        self.knows_cancel = True
        self._owner: dict[str, ScriptedConnection] = {}
        self._clones = clones
        self._numbers = 0
        self._lock = threading.RLock()
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(self.path)
        self._listener.listen(64)
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        """Close all connections."""
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for connection in self.connections:
            with contextlib.suppress(OSError):
                connection.socket.shutdown(socket.SHUT_RDWR)

    def serve_waiting(self) -> None:
        """Answer the waiting acquires for which there are clones."""
        with self._lock:
            while self.waiting and len(self.held) < self._clones:
                connection, request, method, params = self.waiting[0]
                if method != "acquire":
                    return
                self.waiting.pop(0)
                self._grant(connection, request, params.get("label", ""))

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                connection = ScriptedConnection(self._listener.accept()[0])
                connection.socket.settimeout(None)
                self.connections.append(connection)
                threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection: ScriptedConnection) -> None:
        with contextlib.suppress(OSError), connection.socket.makefile("rb") as stream:
            for line in stream:
                while self.deaf.is_set():
                    threading.Event().wait(0.005)
                with self._lock:
                    self._hear(connection, line)
        with self._lock:
            connection.gone = True
            self.waiting = [each for each in self.waiting if each[0] is not connection]
            for token in [token for token, owner in self._owner.items() if owner is connection]:
                self._forget(token)
            self.serve_waiting()
        connection.socket.close()

    def _hear(self, connection: ScriptedConnection, line: bytes) -> None:
        try:
            message = json.loads(line)
        except ValueError:
            self.garbage.append(line)
            return
        while self._news:
            told, news = self._news.pop(0)
            told.send(method="lease.leaked", params=news)
        method, request = message["method"], message["id"]
        self.seen.append(method)
        getattr(self, f"_{method}")(connection, request, message["params"])

    def _grant(
        self, connection: ScriptedConnection, request: object, label: str, token: str = ""
    ) -> None:
        self._numbers += 1
        token = token or f"token {self._numbers}"
        self.held[token], self._owner[token] = label, connection
        connection.send(
            id=request,
            result={
                "lease": token, "template": "blog", "generation": "g", "database": label,
                "url": "postgresql:///x", "host": "/x", "port": 5432, "user": "u", "password": "p",
                "env": ENV, "source": "ready", "waited_seconds": 0.0, "expires_in_seconds": None,
            },
        )  # fmt: skip

    def _forget(self, token: str) -> bool:
        self._owner.pop(token, None)
        self.filling.pop(token, None)
        return self.held.pop(token, None) is not None

    def _acquire(
        self, connection: ScriptedConnection, request: object, params: dict[str, Any]
    ) -> None:
        if params.get("progress"):
            for number in range(3):
                connection.send(method="progress", params={"request": request, "ahead": number})
        if params["template"] == "unknown":
            connection.refuse(request, "unknown_template")
            return
        self.waiting.append((connection, request, "acquire", params))
        if params["template"] != "never":
            self.serve_waiting()

    def _release(
        self, connection: ScriptedConnection, request: object, params: dict[str, Any]
    ) -> None:
        database = self.held.get(params["lease"])
        if not self._forget(params["lease"]):
            connection.refuse(request, "not_your_lease")
            return
        leaked = self.leaves if params.get("report") else None
        if self.leaves and leaked is None:  # before the answer: then the test may change it
            news = {"template": "blog", "database": database, "leaked": self.leaves}
            self._news.append((connection, news))
        connection.send(id=request, result={"leaked": leaked, "kept": None, "kept_seconds": None})
        self.serve_waiting()

    def _renew(
        self, connection: ScriptedConnection, request: object, params: dict[str, Any]
    ) -> None:
        connection.send(id=request, result={"expires_in_seconds": params.get("ttl")})

    def _reset(
        self, connection: ScriptedConnection, request: object, params: dict[str, Any]
    ) -> None:
        label = self.held[params["lease"]]
        if params.get("timeout") is None:
            self._grant(connection, request, label, params["lease"])
        else:
            self.waiting.insert(0, (connection, request, "reset", params))

    def _define(
        self, connection: ScriptedConnection, request: object, params: dict[str, Any]
    ) -> None:
        if params["hash"] in self.filling.values():
            self.waiting.append((connection, request, "define", params))
            return
        self._numbers += 1
        token = f"definition {self._numbers}"
        self.filling[token], self._owner[token] = params["hash"], connection
        result = {"template": "made", "filled": False, "definition": token, "url": "x"}
        result |= {"database": "d", "env": ENV, "expires_in_seconds": 60.0}
        connection.send(id=request, result=result)

    def _finalize(
        self, connection: ScriptedConnection, request: object, params: dict[str, Any]
    ) -> None:
        if params["definition"] not in self.filling:
            connection.refuse(request, "not_your_definition")
            return
        self._forget(params["definition"])
        connection.send(id=request, result={"template": "", "generation": ""})

    def _drain(
        self, connection: ScriptedConnection, request: object, params: dict[str, Any]
    ) -> None:
        self.waiting.append((connection, request, "drain", params))

    def _cancel(
        self, connection: ScriptedConnection, request: object, params: dict[str, Any]
    ) -> None:
        if not self.knows_cancel:
            connection.refuse(request, "unknown_method")
            return
        wanted = [e for e in self.waiting if e[0] is connection and e[1] == params["request"]]
        for entry in wanted:
            self.waiting.remove(entry)
            connection.refuse(entry[1], "cancelled")
            if entry[2] == "reset":
                self._forget(entry[3]["lease"])
        connection.send(id=request, result={"cancelled": bool(wanted)})
        self.serve_waiting()

    def _ping(self, connection: ScriptedConnection, request: object, _: dict[str, Any]) -> None:
        connection.send(id=request, result={})

    def _die(self, connection: ScriptedConnection, *_: object) -> None:
        connection.socket.shutdown(socket.SHUT_RDWR)
