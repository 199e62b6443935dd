"""What several processes that share one cache folder need of one another."""
