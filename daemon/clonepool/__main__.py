"""`python -m clonepool` is `clonepool`."""

from clonepool.cli import main

main()
