"""Options that several commands share."""

from __future__ import annotations

import click

socket_option = click.option(
    "--socket",
    "socket_path",
    metavar="PATH",
    help="The daemon's socket. [default: $CLONEPOOL_SOCKET, else the usual places]",
)

json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON.")
