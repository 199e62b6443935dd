"""The cache of results: the interface, and its disk and memory tiers."""
