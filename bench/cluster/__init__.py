"""Nodes behind a balancer: what a picture costs, who helps with a hot one, what a loss costs."""
