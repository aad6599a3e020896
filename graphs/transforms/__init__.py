"""What changes graphs: quantisation, float16, cleaning, splitting. The only part of the contract that uses onnx_ir."""
