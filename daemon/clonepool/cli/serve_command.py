"""clonepool serve: run the daemon."""

from __future__ import annotations

from pathlib import Path

import click

from clonepool.cli.options import socket_option


@click.command("serve")
@click.option(
    "--config",
    "config_path",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Configuration file.  [default: ./config.toml, else /etc/clonepool/config.toml, else the"
    " demo's]",
)
@click.option(
    "--state",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="Directory of the embedded server's data, keys and locks.  [default: see"
    " docs/operations.md]",
)
@click.option(
    "--http",
    "listen",
    metavar="ADDRESS:PORT",
    help='Address to serve metrics and health on, in place of http.listen; "" serves none.',
)
@click.option(
    "--record",
    "recording",
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="FILE",
    help="Record all events and decisions in this file, for `clonepool replay`.",
)
@socket_option
def command(
    config_path: Path | None,
    state: Path | None,
    listen: str | None,
    recording: Path | None,
    socket_path: str | None,
) -> None:
    """Run the daemon in the foreground, until SIGTERM or SIGINT."""
    import anyio

    from clonepool import config, paths
    from clonepool.cli import locations
    from clonepool.observe import logs
    from clonepool.service.app import serve

    settings = config.load(config_path or locations.default_config(), http_listen=listen)
    logs.configure(settings.log.level, settings.log.format)
    anyio.run(
        serve,
        settings,
        Path(paths.default_socket(socket_path)),
        (state or locations.default_state_dir()).absolute(),
        recording,
        backend_options={"use_uvloop": True},
    )
