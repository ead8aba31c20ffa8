from __future__ import annotations

import json

import pytest

from clonepool.errors import BY_CODE, ClonepoolError, PoolFullError
from clonepool.protocol.client import ClientConnection, Notification, Reply
from clonepool.protocol.server import (
    Message,
    ServerConnection,
    encode_error,
    encode_notification,
    encode_result,
)


def test_both_ends_understand_each_other() -> None:
    client, server = ClientConnection(), ServerConnection()
    number, line = client.request("acquire", {"template": "blog", "timeout": None})
    (call,) = server.receive(line)
    assert isinstance(call, Message)
    (reply,) = client.receive(encode_result(call.id, {"lease": "t"}))
    assert isinstance(reply, Reply)
    assert (reply.id, reply.result, reply.error) == (number, {"lease": "t"}, None)


def test_an_error_arrives_as_its_class_with_its_remedy_apart() -> None:
    sent = PoolFullError("all are leased", remedy="raise max_clones")
    (reply,) = ClientConnection().receive(encode_error(1, sent))
    assert isinstance(reply, Reply)
    assert isinstance(reply.error, PoolFullError)
    assert (str(reply.error), reply.error.remedy) == ("all are leased", "raise max_clones")


def test_an_error_of_a_newer_daemon_is_still_an_error() -> None:
    line = b'{"id":1,"error":{"code":-32000,"message":"new","data":{"code":"brand_new"}}}\n'
    (reply,) = ClientConnection().receive(line)
    assert isinstance(reply, Reply)
    assert type(reply.error) is ClonepoolError


@pytest.mark.parametrize("code", sorted(BY_CODE))
def test_every_code_of_the_wire_has_one_class(code: str) -> None:
    (reply,) = ClientConnection().receive(encode_error(1, BY_CODE[code]("x")))
    assert isinstance(reply, Reply)
    assert type(reply.error) is BY_CODE[code]
    assert json.loads(encode_error(1, BY_CODE[code]("x")))["error"]["data"]["code"] == code


def test_a_notification_is_told_from_a_reply() -> None:
    (heard,) = ClientConnection().receive(encode_notification("lease.expiring", {"lease": "t"}))
    assert isinstance(heard, Notification)
    assert (heard.method, heard.params) == ("lease.expiring", {"lease": "t"})


def test_what_carries_an_id_is_a_reply_whatever_else_it_carries() -> None:
    (heard,) = ClientConnection().receive(b'{"id":7,"method":"acquire"}\n')
    assert isinstance(heard, Reply)
    assert (heard.id, heard.error) == (7, None)
