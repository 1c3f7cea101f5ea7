"""What runs a matcher: PyTorch, CUDA graphs, ONNX Runtime or OpenVINO, and which is fastest on this machine."""
