"""Tests of the store that machines share."""
