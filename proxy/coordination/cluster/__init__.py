"""Coordinates processes on several machines over a database."""
