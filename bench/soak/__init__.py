"""A day in the life of a server, compressed: what breaks in one, and what is left of it."""
