"""Rounding of weights that looks at what they are multiplied by: on pictures of the user's, with the written bundle."""
