"""Comparing a new bundle with the source model."""
