"""From a PyTorch module without weights to an ONNX graph."""
