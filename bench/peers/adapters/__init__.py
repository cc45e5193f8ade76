"""One module per engine (workload.py says what it offers). Its library is imported inside of functions: peers have their own environments."""
