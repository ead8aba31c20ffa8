"""A call is answered only once, even if several answers arrive."""

from __future__ import annotations

from structlog.testing import capture_logs

from clonepool.errors import ShuttingDownError
from clonepool.service.call import Call
from support.connections import FakeConnection


def test_it_is_open_until_it_is_answered() -> None:
    connection = FakeConnection()
    call = Call(connection, 1, 7)
    assert connection.open_calls == {call}
    call.reply({"x": 1})
    assert connection.open_calls == set()
    assert connection.sent == [{"jsonrpc": "2.0", "id": 7, "result": {"x": 1}}]


def test_answers_after_the_first_are_dropped() -> None:
    connection = FakeConnection()
    call = Call(connection, 1, 7)
    call.fail(ShuttingDownError("x"))
    call.reply({})
    call.fail(ShuttingDownError("x"))
    call.notify("progress", {})
    assert len(connection.sent) == 1
    assert call.is_gone


def test_nothing_is_sent_to_a_connection_that_has_ended() -> None:
    connection = FakeConnection()
    call = Call(connection, 1, 7)
    connection.is_gone = True
    call.notify("progress", {})
    call.reply({})
    assert connection.sent == []
    assert connection.open_calls == set()


def test_a_cancelled_call_is_answered_before_it_is_taken_back() -> None:
    connection = FakeConnection()
    call = Call(connection, 1, 7)
    sent_when_taken_back: list[int] = []
    call.on_cancel(lambda: sent_when_taken_back.append(len(connection.sent)))
    assert connection.cancellable[7].cancel()
    assert sent_when_taken_back == [1]
    assert connection.errors == ["cancelled"]
    assert not call.cancel()
    assert connection.cancellable == {}


def test_an_answered_call_cannot_be_cancelled() -> None:
    connection = FakeConnection()
    call = Call(connection, 1, 7)
    call.on_cancel(lambda: None)
    call.reply({})
    assert connection.cancellable == {}
    assert not call.cancel()
    call.on_cancel(lambda: None)
    assert connection.cancellable == {}


def test_of_two_calls_with_one_id_the_later_can_be_cancelled() -> None:
    connection = FakeConnection()
    first, second = Call(connection, 1, 7), Call(connection, 2, 7)
    first.on_cancel(lambda: None)
    second.on_cancel(lambda: None)
    first.reply({})
    assert connection.cancellable[7] is second


def test_what_cannot_be_encoded_is_an_internal_error() -> None:
    connection = FakeConnection()
    with capture_logs() as logs:
        Call(connection, 1, 7).reply({1j: object()})
        Call(connection, 2, 8).notify("progress", object())
    assert connection.errors == ["internal_error"]
    assert [entry["event"] for entry in logs] == ["reply.failed", "notification.failed"]
