"""Writes artifacts: packing of weights, streaming safetensors, manifest, atomic rename. The format is docs/artifact-format.md."""
