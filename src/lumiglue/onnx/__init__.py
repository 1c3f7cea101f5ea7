"""LightGlue as ONNX: the graph, the file, and running it. Needs `pip install "lumiglue[onnx]"`."""
