"""Nodes, parameters and constants that no output depends on are removed. Inputs stay: they are the interface of a step.

before:
    input %x: f32[num_tokens, 3]
    param %w: f32[3]
    %a = ew.mul(%x, %w)
    %y = ew.exp(%x)
    return %y
after:
    input %x: f32[num_tokens, 3]
    %y = ew.exp(%x)
    return %y
"""

from __future__ import annotations

from ..ir.graph import Graph
from ..ir.rewrite import remove_dead


def run(graph: Graph) -> Graph:
    return remove_dead(graph)
