"""Execution providers: options, probing, placement of nodes."""
