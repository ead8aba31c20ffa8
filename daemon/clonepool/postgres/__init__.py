"""PostgreSQL as the pool sees it: all SQL, and the only import of asyncpg.

Connections are in `gateway` (how they are opened and shared), `session` (one of them) and
`server_errors`. `databases` and `roles` are what the daemon creates on a server, `shared_objects`
what all databases of a server share. The packages: `clones` copies, checks and parks clones,
`templates` builds generations, `rewind` puts returned clones back, `embedded` runs the daemon's own
server.
"""
