"""The daemon's end of a connection answers each line of any input, and keeps working.

`CLONEPOOL_FUZZ_SEED` repeats a run; each failure names the seed and the input.
"""

from __future__ import annotations

import json
import os
import random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clonepool.protocol.framing import MAX_LINE_BYTES
from clonepool.protocol.messages import METHODS
from clonepool.protocol.server import Message, Rejected, ServerConnection, encode_result
from support import lanes

INPUTS = lanes.examples(20_000)
SEED = int(os.environ.get("CLONEPOOL_FUZZ_SEED") or random.SystemRandom().randrange(2**32))
LIMIT = 4096
SPARE_BYTES = 2048
"""What a reply may have beyond the line that it answers: its own words, and escapes in excerpts."""
NUMBERS = {-32700, -32600, -32601, -32602}
ODD_VALUES: list[Any] = [
    None, True, False, 0, -1, 1e308, -1e-320, 2**63, 2**64, -(10**40), 0.1, "", "x" * 201, "\0",
    "\ud7ff\ue000", "\U0001f600" * 60, "sha256:", [], [[]], {}, {"": {}}, {"lease": {}}, "null",
]  # fmt: skip
ODD_BYTES = [
    b"\0", b"\xff", b"\xc3", b"\xed\xa0\x80", b"\\ud800", b"\\u0000", b"\n", b"\r\n", b"\r", b'"',
    b"\\", b"{", b"}", b"[", b"]", b":", b",", b"NaN", b"-", b"1e999", b"9" * 400, b"9" * 5000,
    b"[" * 2000, b'{"a":' * 700, b"\xef\xbb\xbf", b"\xe2\x80\xa8", b"/**/", b"-0", b"1.", b" ",
]  # fmt: skip
FIELDS = {name: shape.__struct_fields__ for name, shape in METHODS.items()}


def request(choice: random.Random) -> bytes:
    """Return a request that is right, or nearly."""
    method = choice.choice(sorted(METHODS))
    right = {"protocol": 1, "template": "blog", "lease": "t" * 22, "timeout": 0.5, "ttl": 2.5}
    params = {
        field: right.get(field, choice.choice(["text", True]))
        for field in FIELDS[method]
        if choice.random() < 0.8
    }
    message: dict[str, Any] = {"jsonrpc": "2.0", "id": choice.randrange(99), "method": method}
    message["params"] = params
    for _ in range(choice.choice([0, 0, 1, 2])):
        place = choice.choice([message, params])
        field = choice.choice([*place, "odd", "id", "ttl"])
        place[field] = choice.choice(ODD_VALUES)
    return json.dumps(message, ensure_ascii=choice.random() < 0.5).encode("utf-8", "replace")


def mutate(line: bytes, other: bytes, choice: random.Random) -> bytes:
    """Return the line with one thing done to its bytes."""
    at, to = sorted((choice.randrange(len(line) + 1), choice.randrange(len(line) + 1)))
    match choice.randrange(6):
        case 0:
            return line[:at] + bytes([choice.randrange(256)]) + line[at + 1 :]
        case 1:
            return line[:at]
        case 2:
            return line[:at] + other[choice.randrange(len(other) + 1) :]
        case 3:
            return line[:at] + choice.choice(ODD_BYTES) + line[at:]
        case 4:
            return line[:at] + line[to:]
        case _:
            return line[:to] + line[at:]


def stream(choice: random.Random) -> bytes:
    """Return some lines, most of them wrong."""
    lines = [request(choice) for _ in range(choice.choice([1, 1, 2, 4]))]
    for _ in range(choice.choice([0, 1, 1, 2, 3])):
        place = choice.randrange(len(lines))
        lines[place] = mutate(lines[place], choice.choice(lines), choice)
    return b"\n".join(lines) + b"\n"


def pieces(data: bytes, choice: random.Random) -> list[bytes]:
    """Cut the bytes anywhere."""
    edges = sorted(choice.randrange(len(data) + 1) for _ in range(choice.choice([0, 0, 1, 3, 9])))
    return [data[a:b] for a, b in zip([0, *edges], [*edges, len(data)], strict=True)]


def check(
    data: bytes, cut: list[bytes], connection: ServerConnection, limit: int = LIMIT
) -> ServerConnection:
    """Feed the pieces and look at the answers; return the connection to go on with."""
    answers: list[Message | Rejected] = []
    for piece in cut:
        answers += connection.receive(piece)
        if answers and isinstance(answers[-1], Rejected) and answers[-1].fatal:
            assert any(len(line) > limit for line in data.split(b"\n"))
            assert len(answers[-1].reply) < SPARE_BYTES
            return ServerConnection(limit)
        assert len(connection._lines._rest) <= limit
    lines = [line for line in data.split(b"\n") if line and not line.isspace()]
    assert len(answers) == len(lines), "each line gets one answer"
    for line, answer in zip(lines, answers, strict=True):
        check_answer(line, answer)
    assert not connection._lines._rest
    assert vars(connection).keys() == {"_lines"}
    return connection


def check_answer(line: bytes, answer: Message | Rejected) -> None:
    if isinstance(answer, Message):
        assert isinstance(answer.params, METHODS[answer.method])
        assert json.loads(encode_result(answer.id, {}))["id"] == answer.id
        return
    assert not answer.fatal
    assert answer.reply.endswith(b"\n")
    assert answer.reply.count(b"\n") == 1
    assert len(answer.reply) <= len(line) + SPARE_BYTES
    reply = json.loads(answer.reply)
    assert reply.keys() == {"jsonrpc", "id", "error"}
    assert reply["id"] is None or type(reply["id"]) in (int, str)
    error = reply["error"]
    assert error.keys() == {"code", "message", "data"}
    assert error["code"] in NUMBERS
    wanted = "unknown_method" if error["code"] == -32601 else "bad_request"
    assert error["data"]["code"] == wanted
    assert error["message"]
    assert error["data"]["remedy"]


def test_every_line_of_a_broken_stream_gets_one_answer() -> None:
    choice, connection = random.Random(SEED), ServerConnection(LIMIT)
    for number in range(INPUTS):
        data = stream(choice)
        try:
            connection = check(data, pieces(data, choice), connection)
        except Exception as error:  # noqa: BLE001 - whatever is raised is what was looked for
            pytest.fail(f"seed {SEED}, input {number}, {data!r}: {error!r}")


@settings(max_examples=lanes.examples(200), deadline=None)
@given(
    choice=st.randoms(use_true_random=False),
    noise=st.lists(st.binary(max_size=40) | st.sampled_from(ODD_BYTES), max_size=4),
)
def test_noise_between_requests_hides_none_of_them(
    choice: random.Random, noise: list[bytes]
) -> None:
    data = b"\n".join([*noise, b'{"id":"last","method":"ping"}', b""])
    connection = check(data, pieces(data, choice), ServerConnection(), MAX_LINE_BYTES)
    assert connection.receive(b'{"id":1,"method":"ping"}\n')[0] == Message(
        1, "ping", METHODS["ping"]()
    )


@settings(max_examples=lanes.examples(200), deadline=None)
@given(choice=st.randoms(use_true_random=False))
def test_a_broken_stream_is_answered_alike_however_it_is_cut(choice: random.Random) -> None:
    data = stream(choice)
    whole, cut = ServerConnection(), ServerConnection()
    assert [m for piece in pieces(data, choice) for m in cut.receive(piece)] == whole.receive(data)
