"""Metrics and health over HTTP, with bounded resources."""
