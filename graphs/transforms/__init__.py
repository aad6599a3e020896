"""Functions that change graphs: quantisation, float16, cleanup, splitting. Only they use onnx_ir in `graphs`."""
