"""Commands that take many inputs and write files of results."""
