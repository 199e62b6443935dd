"""Coordinates several processes that share a cache folder, or a database."""
