"""A balancer before several nodes: nginx or HAProxy, configured so that a picture has one node."""
