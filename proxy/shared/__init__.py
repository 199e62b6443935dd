"""Mechanisms that know nothing of pictures: single flight, expiring maps, SQLite files."""
