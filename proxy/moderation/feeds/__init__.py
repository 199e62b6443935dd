"""Streams of events that are followed: labels, and what becomes of accounts."""
