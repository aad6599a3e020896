"""A bundle as a model of Triton's Python backend, with the inputs and outputs of Triton's vLLM backend."""
