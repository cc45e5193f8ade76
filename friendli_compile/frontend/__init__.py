"""From a Hugging Face folder or hub id to a graph and a reader of its weights. `load_source`, `trace_model` and `Checkpoint` are the door."""
