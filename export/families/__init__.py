"""The supported model families, one file each."""
