from __future__ import annotations

import json
from itertools import pairwise
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from clonepool.protocol.client import ClientConnection
from clonepool.protocol.framing import LineReader, LineTooLongError
from clonepool.protocol.messages import METHODS
from clonepool.protocol.server import Message, Rejected, ServerConnection

REQUESTS = st.fixed_dictionaries(
    {"id": st.integers() | st.text(max_size=5), "method": st.sampled_from(sorted(METHODS))},
    optional={
        "jsonrpc": st.just("2.0"),
        "params": st.dictionaries(
            st.sampled_from(["template", "lease", "timeout", "label", "odd"]),
            st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=9),
            max_size=3,
        ),
    },
)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)
LINES = st.lists(
    REQUESTS.map(lambda r: json.dumps(r).encode()) | st.binary(max_size=50), max_size=8
)


def cut(data: bytes, places: list[int]) -> list[bytes]:
    edges = [0, *sorted(place % (len(data) + 1) for place in places), len(data)]
    return [data[a:b] for a, b in pairwise(edges)]


@given(lines=LINES, places=st.lists(st.integers(0, 10_000), max_size=20))
def test_any_cutting_of_the_same_bytes_gives_the_same_messages(
    lines: list[bytes], places: list[int]
) -> None:
    data = b"\n".join(lines) + b"\n"
    whole, pieces = ServerConnection().receive(data), ServerConnection()
    assert [m for piece in cut(data, places) for m in pieces.receive(piece)] == whole


@given(data=st.lists(st.binary(max_size=200), max_size=10))
def test_no_bytes_make_the_parser_raise(data: list[bytes]) -> None:
    connection = ServerConnection(limit=100)
    for piece in data:
        for message in connection.receive(piece):
            assert isinstance(message, Message | Rejected)


@given(value=JSON)
def test_any_json_gets_a_call_or_a_well_formed_error(value: Any) -> None:
    line = json.dumps(value).encode() + b"\n"
    for message in ServerConnection().receive(line):
        if isinstance(message, Rejected):
            error = json.loads(message.reply)["error"]
            assert set(error) == {"code", "message", "data"}
            assert set(error["data"]) == {"code", "remedy"}


@given(
    limit=st.integers(1, 20),
    data=st.lists(st.sampled_from(b"ab\n"), max_size=80).map(bytes),
    places=st.lists(st.integers(0, 100), max_size=8),
)
def test_a_long_line_is_refused_however_it_is_cut(
    limit: int, data: bytes, places: list[int]
) -> None:
    too_long = any(len(line) > limit for line in data.split(b"\n"))
    reader, refused = LineReader(limit), False
    for piece in cut(data, places):
        try:
            reader.feed(piece)
        except LineTooLongError:
            refused = True
            break
    assert refused == too_long


@given(calls=st.lists(st.tuples(st.sampled_from(sorted(METHODS)), JSON), max_size=6))
def test_what_the_client_writes_the_server_reads_as_lines(calls: list[tuple[str, Any]]) -> None:
    client = ClientConnection()
    finite = [(m, v) for m, v in calls if "NaN" not in json.dumps(v) and "Inf" not in json.dumps(v)]
    data = b"".join(client.request(method, {"template": value})[1] for method, value in finite)
    assert len(ServerConnection().receive(data)) == len(finite)
