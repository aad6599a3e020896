"""Reading a checkpoint: configuration, weights, adapters, and the Hub."""
