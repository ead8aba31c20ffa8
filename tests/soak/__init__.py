"""The soak: clients and chaos for minutes, then a proof out of what everybody wrote down.

`python -m soak --minutes 5`. `ground` has the daemon, `client` one client process, `chaos`
what goes wrong; each writes a journal. `checker` reads those and knows nothing of the daemon.
"""
