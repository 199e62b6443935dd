"""Where results are kept: the interface, and its disk and memory tiers."""
