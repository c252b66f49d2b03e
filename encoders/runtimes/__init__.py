"""What computes a model's outputs: torch, or ONNX Runtime without torch."""
