"""Mechanisms that do not depend on pictures: single flight, expiring maps, SQLite files."""
