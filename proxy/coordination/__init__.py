"""Coordinates several processes that share one cache folder."""
