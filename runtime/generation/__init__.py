"""The decode loop and its strategies. Knows token ids only, in NumPy."""
