"""Passwords in the form that PostgreSQL stores: no statement or log contains one in clear."""

from __future__ import annotations

import base64
import hashlib
import hmac
import os

ITERATIONS = 4096
"""Least number of iterations that drivers accept (RFC 7677)."""
ITERATIONS_OF_RANDOM = 1
"""Number of iterations on the embedded server: stretching a random password only slows logins."""


def scram_verifier(password: str, iterations: int) -> str:
    """Return a SCRAM-SHA-256 verifier (RFC 5803), as pg_authid holds it.

    Args:
        password: ASCII, so that SASLprep would leave it as it is.
        iterations: how often the password is stretched.
    """
    salt = os.urandom(16)
    salted = hashlib.pbkdf2_hmac("sha256", password.encode(), salt, iterations)
    stored = hashlib.sha256(hmac.digest(salted, b"Client Key", "sha256")).digest()
    server = hmac.digest(salted, b"Server Key", "sha256")
    encoded = [base64.b64encode(part).decode() for part in (salt, stored, server)]
    return f"SCRAM-SHA-256${iterations}:{encoded[0]}${encoded[1]}:{encoded[2]}"
