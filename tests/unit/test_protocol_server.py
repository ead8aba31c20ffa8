from __future__ import annotations

import json

import pytest

from clonepool.protocol.framing import MAX_LINE_BYTES, LineReader, LineTooLongError
from clonepool.protocol.messages import Acquire, Release
from clonepool.protocol.server import Message, Rejected, ServerConnection


def only(line: bytes) -> Message | Rejected:
    (message,) = ServerConnection().receive(line + b"\n")
    return message


def rejection(line: bytes) -> dict[str, object]:
    message = only(line)
    assert isinstance(message, Rejected)
    assert not message.fatal
    reply: dict[str, object] = json.loads(message.reply)
    return reply


def test_a_request_becomes_a_call() -> None:
    line = b'{"jsonrpc":"2.0","id":7,"method":"acquire","params":{"template":"blog","timeout":1}}'
    assert only(line) == Message(7, "acquire", Acquire("blog", timeout=1.0))


def test_what_a_person_types_into_nc_will_do() -> None:
    line = b'{"id": "a", "method": "release", "params": {"lease": "t"}}\r'
    assert only(line) == Message("a", "release", Release("t"))


def test_several_requests_may_come_at_once() -> None:
    lines = b"".join(b'{"id":%d,"method":"ping"}\n' % n for n in range(5))
    assert [c.id for c in ServerConnection().receive(lines) if isinstance(c, Message)] == list(
        range(5)
    )


def test_empty_lines_are_passed_over() -> None:
    assert ServerConnection().receive(b"\n\r\n  \n") == []


def test_an_unknown_field_is_named_with_those_there_are() -> None:
    line = b'{"id":1,"method":"acquire","params":{"template":"blog","tiemout":1}}'
    error = rejection(line)["error"]
    assert isinstance(error, dict)
    assert error["code"] == -32602
    assert error["data"]["code"] == "bad_request"
    assert "`tiemout`" in error["message"]
    assert error["data"]["remedy"] == (
        "its parameters are: template, timeout, ttl, label, fresh, stale_ok, progress"
    )


def test_an_unknown_method_is_named_with_those_there_are() -> None:
    error = rejection(b'{"id":1,"method":"steal"}')["error"]
    assert isinstance(error, dict)
    assert (error["code"], error["data"]["code"]) == (-32601, "unknown_method")
    assert "acquire" in error["data"]["remedy"]


@pytest.mark.parametrize(
    ("line", "code"),
    [
        (b"hello", -32700),
        (b"\xff\xfe", -32700),
        (b'{"id":1,', -32700),
        (b"[" * 100_000, -32700),
        (b"[]", -32600),
        (b"1", -32600),
        (b'{"method":"ping"}', -32600),
        (b'{"id":1}', -32600),
        (b'{"id":null,"method":"ping"}', -32600),
        (b'{"id":1,"method":5}', -32600),
        (b'{"id":1,"method":"ping","extra":1}', -32600),
        (b'{"id":1.5,"method":"ping"}', -32600),
        (b'{"id":1,"jsonrpc":"1.0","method":"ping"}', -32600),
        (b'{"id":1,"method":"ping","params":[]}', -32602),
        (b'{"id":1,"method":"acquire"}', -32602),
        (b'{"id":1,"method":"acquire","params":{"template":1}}', -32602),
        (b'{"id":1,"method":"acquire","params":{"template":"x","timeout":-1}}', -32602),
        (b'{"id":1,"method":"acquire","params":{"template":"x","timeout":1e999}}', -32602),
        (b'{"id":1,"method":"acquire","params":' + b"[" * 50_000 + b"]" * 50_000 + b"}", -32602),
    ],
)
def test_a_bad_line_gets_an_error_and_the_stream_goes_on(line: bytes, code: int) -> None:
    connection = ServerConnection()
    bad, good = connection.receive(line + b'\n{"id":2,"method":"ping"}\n')
    assert isinstance(bad, Rejected)
    assert not bad.fatal
    assert json.loads(bad.reply)["error"]["code"] in (code, -32700, -32600)
    assert isinstance(good, Message)


def test_a_malformed_request_is_answered_under_its_id_when_it_has_one() -> None:
    assert rejection(b'{"id":9,"method":5}')["id"] == 9
    assert rejection(b'{"id":true,"method":5}')["id"] is None


def test_a_line_that_is_too_long_ends_the_connection() -> None:
    (rejected,) = ServerConnection().receive(b"x" * (MAX_LINE_BYTES + 1))
    assert isinstance(rejected, Rejected)
    assert rejected.fatal
    assert json.loads(rejected.reply)["error"]["data"]["code"] == "bad_request"


def test_a_line_of_exactly_the_limit_is_read() -> None:
    assert LineReader(4).feed(b"abcd\nab") == [b"abcd"]


@pytest.mark.parametrize(
    "pieces", [(b"abcde\n",), (b"abc", b"de\n"), (b"abc", b"de"), (b"a\nbcdef",)]
)
def test_a_longer_line_is_refused_in_whatever_pieces_it_comes(pieces: tuple[bytes, ...]) -> None:
    reader = LineReader(4)
    *first, last = pieces
    for piece in first:
        reader.feed(piece)
    with pytest.raises(LineTooLongError):
        reader.feed(last)
