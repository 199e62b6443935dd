"""Follows streams of events: labels, and changes of accounts."""
