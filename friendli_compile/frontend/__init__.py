"""From a Hugging Face folder or hub id to a graph and a reader of its weights.

source = load_source("org/name")            source.py       the folder, its config and files
traced = trace_model(source)                trace.py        the graph, or UnsupportedModel
weights = Checkpoint(source, traced)        checkpoint.py   parameters as float32, one at a time
"""
