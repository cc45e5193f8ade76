"""What depends on constants only is computed now. Expressions over parameters stay: the planner packs them (docs/adr/0002).

before:
    input %x: f32[num_tokens, 3]
    const %a: f32[3] = [1.0, 2.0, 3.0]
    %b = ew.mul(%a, 2.0)
    %y = ew.add(%x, %b)
    return %y
after:
    input %x: f32[num_tokens, 3]
    const %c: f32[3] = [2.0, 4.0, 6.0]
    %y = ew.add(%x, %c)
    return %y
"""

from __future__ import annotations

from ..ir.graph import Graph, Node, num_elements
from ..ir.interpreter import run_node
from ..ir.rewrite import Inputs, Replacement, Rewriter, rewrite

MAX_ELEMENTS = 1 << 24  # 64 MiB: what is larger (it can only be an expansion or a fill) stays an expression


def run(graph: Graph) -> Graph:
    return rewrite(graph, _rule)


def _rule(rw: Rewriter, node: Node, inputs: Inputs) -> Replacement:
    if any(rw.data(value) is None for value in inputs if value is not None) or node.op == "attn.paged":
        return None
    sizes = [num_elements(value.dims) for value in node.outputs]
    if any(names or size > MAX_ELEMENTS for size, names in sizes):
        return None
    arrays = run_node(node, [rw.data(value) for value in inputs], {})
    outputs = tuple(rw.builder.constant(array.copy()) for array in arrays)
    return outputs if len(outputs) > 1 else outputs[0]
