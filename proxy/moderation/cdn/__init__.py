"""What the CDN before this service has to forget: a durable queue, and who works through it."""
