"""Campaigns of damaged input and killed processes."""
