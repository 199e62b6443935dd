"""An atproto network in memory: directory, PDSes and domains that misbehave on demand."""
