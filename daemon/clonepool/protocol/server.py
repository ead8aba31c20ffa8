"""The daemon's end of one connection: bytes to messages, results to bytes."""

from __future__ import annotations

from typing import Any

import msgspec

from clonepool.errors import BadRequestError, ClonepoolError, UnknownMethodError
from clonepool.protocol.framing import MAX_LINE_BYTES, LineReader, LineTooLongError
from clonepool.protocol.messages import METHODS, Envelope, ErrorData, ErrorObject, Params

RequestId = int | str | None

_PARSE_ERROR = -32700
_INVALID_REQUEST = -32600
_METHOD_NOT_FOUND = -32601
_INVALID_PARAMS = -32602
_APPLICATION_ERROR = -32000
_EXCERPT_BYTES = 80

_encoder = msgspec.json.Encoder()
_envelopes = msgspec.json.Decoder(Envelope)
_params = {name: msgspec.json.Decoder(shape) for name, shape in METHODS.items()}


class Message(msgspec.Struct, frozen=True):
    """A request of the right shape, as it came over the wire."""

    id: RequestId
    method: str
    params: Params


class Rejected(msgspec.Struct, frozen=True):
    """A request whose answer is `reply`, because it is malformed.

    When `fatal`, the stream cannot be trusted any more: send the reply and close.
    """

    reply: bytes
    fatal: bool


class ServerConnection:
    """Turns what one client sends into messages. Never raises, whatever arrives."""

    def __init__(self, limit: int = MAX_LINE_BYTES) -> None:
        self._lines = LineReader(limit)

    def receive(self, data: bytes) -> list[Message | Rejected]:
        """Return the requests that `data` completes, in order. Empty lines are skipped."""
        try:
            lines = self._lines.feed(data)
        except LineTooLongError as error:
            refusal = BadRequestError(str(error), remedy="send one JSON object a line")
            return [Rejected(encode_error(None, refusal, _INVALID_REQUEST), fatal=True)]
        return [_read(line) for line in lines if line and not line.isspace()]


def _read(line: bytes) -> Message | Rejected:
    try:
        envelope = _envelopes.decode(line)
    except msgspec.ValidationError as error:
        refusal = BadRequestError(
            f"not a request: {error}",
            remedy="a request is a JSON object with id, method and params",
        )
        return Rejected(encode_error(_salvage_id(line), refusal, _INVALID_REQUEST), fatal=False)
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
        excerpt = line[:_EXCERPT_BYTES].decode("utf-8", "backslashreplace")
        refusal = BadRequestError(
            f"not JSON: {error}: {excerpt}", remedy="send one JSON object a line, in UTF-8"
        )
        return Rejected(encode_error(None, refusal, _PARSE_ERROR), fatal=False)
    return _read_params(envelope)


def _read_params(envelope: Envelope) -> Message | Rejected:
    decoder = _params.get(envelope.method)
    if decoder is None:
        unknown = UnknownMethodError(
            f"there is no method {envelope.method[:_EXCERPT_BYTES]!r}",
            remedy=f"the methods are {', '.join(METHODS)}",
        )
        return Rejected(encode_error(envelope.id, unknown, _METHOD_NOT_FOUND), fatal=False)
    try:
        return Message(envelope.id, envelope.method, decoder.decode(envelope.params))
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
        fields = ", ".join(METHODS[envelope.method].__struct_fields__) or "none"
        bad = BadRequestError(f"{envelope.method}: {error}", remedy=f"its parameters are: {fields}")
        return Rejected(encode_error(envelope.id, bad, _INVALID_PARAMS), fatal=False)


def encode_result(request: RequestId, result: object) -> bytes:
    """Return the reply line of a request that succeeded; `result` is a struct, list or dict."""
    return _encoder.encode({"jsonrpc": "2.0", "id": request, "result": result}) + b"\n"


def encode_notification(method: str, params: object) -> bytes:
    """Return the line of a notification, which answers no request."""
    return _encoder.encode({"jsonrpc": "2.0", "method": method, "params": params}) + b"\n"


def encode_error(
    request: RequestId, error: ClonepoolError, number: int = _APPLICATION_ERROR
) -> bytes:
    """Return the reply line of a request that failed."""
    body = ErrorObject(number, error.sentence(), ErrorData(error.code, error.remedy))
    return _encoder.encode({"jsonrpc": "2.0", "id": request, "error": body}) + b"\n"


def _salvage_id(line: bytes) -> RequestId:
    """Return the id of a malformed request, if it has one: its sender can match the reply then."""
    try:
        message: Any = msgspec.json.decode(line)
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError):
        return None
    found = message.get("id") if isinstance(message, dict) else None
    return found if isinstance(found, int | str) and not isinstance(found, bool) else None
