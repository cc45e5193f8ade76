"""From a token-major graph to an ordered list of kernel calls on planned memory. `planner.make_plan` is the entry point."""
