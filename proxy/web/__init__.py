"""The HTTP interface: turns requests into responses."""
