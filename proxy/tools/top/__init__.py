"""What ``imageproxy top`` shows of a running server."""
