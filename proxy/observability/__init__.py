"""What this service tells of itself: log lines, metrics, traces."""
