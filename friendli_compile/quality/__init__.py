"""The quality gate: how far a quantized model is from the same model unquantized, and whether that is within a budget."""
