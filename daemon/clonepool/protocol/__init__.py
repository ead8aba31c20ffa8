"""JSON-RPC 2.0 in lines, sans I/O: bytes in, messages out. `docs/protocol.md` is the contract."""
