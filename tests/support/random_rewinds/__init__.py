"""Clones that leases change at random, thousands of times: `make random-rewinds`."""
