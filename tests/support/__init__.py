"""Helpers that several tests share: servers, daemons, simulations, generators."""
