"""Attacks on a server that also has honest clients: what these notice of each attack."""
