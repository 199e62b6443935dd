"""Purges the CDN in front of this service: a durable queue, and the task that sends it."""
