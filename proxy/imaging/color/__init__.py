"""Colour: what a container says of it becomes an ICC profile, and a profile becomes sRGB. Pure."""
