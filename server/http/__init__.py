"""Bytes: sockets, connections, limits, keys, JSON. Knows no model."""
