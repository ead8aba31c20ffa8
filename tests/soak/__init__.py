"""The soak: clients and chaos for minutes, then a check of what all processes recorded.

`python -m soak --minutes 5`. `daemon` runs the daemon, `client` is one client process,
`chaos` injects faults; each writes a journal. `checker` reads the journals and shares no code with
the daemon.
"""
