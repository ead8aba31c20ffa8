"""The pool's decisions: pure, synchronous, without clock, randomness or I/O."""
