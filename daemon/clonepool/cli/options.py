"""Options and arguments that several commands share."""

from __future__ import annotations

import re

import click

_UNITS = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86_400}


class Duration(click.ParamType[float]):
    """A time in seconds, or with a unit: 90, 30s, 10m, 2h, 1d."""

    name = "duration"

    def convert(
        self, value: object, param: click.Parameter | None, ctx: click.Context | None
    ) -> float:
        """Return seconds."""
        match = re.fullmatch(r"(\d+(?:\.\d+)?)([smhd]?)", str(value).strip())
        if match is None:
            self.fail(f"{value!r} is not a duration; write 90, 30s, 10m, 2h or 1d", param, ctx)
        return float(match[1]) * _UNITS[match[2]]


def _require_token(_: click.Context, __: click.Parameter, token: str | None) -> str:
    if not token:
        raise click.UsageError(
            "no lease is named; pass its token, or set CLONEPOOL_LEASE,"
            ' as eval "$(clonepool acquire -t NAME)" does'
        )
    return token


socket_option = click.option(
    "--socket",
    "socket_path",
    metavar="PATH",
    help="The daemon's socket.  [default: $CLONEPOOL_SOCKET, else the default places]",
)

json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON.")

timeout_option = click.option(
    "--timeout",
    type=Duration(),
    help="Time to wait for a clone, such as 5 or 30s.  [default: the daemon's acquire_timeout]",
)

lease_argument = click.argument(
    "token",
    metavar="[LEASE]",
    envvar="CLONEPOOL_LEASE",
    required=False,
    callback=_require_token,
)
