"""What the operator, and those the operator trusts, want not to be served."""
