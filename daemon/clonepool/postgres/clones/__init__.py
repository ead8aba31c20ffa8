"""Clones on the server: copied, verified, warmed, parked; what a lease leaves on one."""
