"""Quantization: which weights are stored in how many bits, and how their values are rounded. The format is docs/quantized-weights.md."""
