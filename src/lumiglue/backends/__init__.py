"""What runs a matcher: PyTorch, CUDA graphs, ONNX Runtime, OpenVINO, and which is fastest here."""
