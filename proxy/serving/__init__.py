"""Runs the application under Hypercorn, in one process or several."""
