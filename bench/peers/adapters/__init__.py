"""One module per engine (workload.py says what it offers), which imports its library inside of functions."""
