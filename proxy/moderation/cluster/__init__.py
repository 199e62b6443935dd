"""Decisions of several machines: in PostgreSQL, and followed by every process."""
