"""The commands that take a bundle to where others run it."""
