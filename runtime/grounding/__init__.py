"""Boxes, masks and entities in text."""
