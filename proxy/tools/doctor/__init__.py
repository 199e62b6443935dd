"""Checks whether this machine can run the service well; each finding has its fix."""
