"""A model of a run as a folder that works without aimfair: weights, preprocessing, ONNX, and a model card."""
