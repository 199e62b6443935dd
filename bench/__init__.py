"""Measurements, each a command: ``python -m bench.load``, ``python -m bench.egress``."""
