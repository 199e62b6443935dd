"""Blocks content that the operator, or services that the operator trusts, do not want served."""
