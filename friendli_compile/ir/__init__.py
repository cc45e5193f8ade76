"""The typed dataflow graph that the frontend builds, the passes rewrite and the planner reads. Contract: docs/ir.md."""
