"""An activation multiplied with another value of the same dims is `nn.act_mul`: the gate of an MLP.

before:
    input %g: f32[num_tokens, 8]
    input %u: f32[num_tokens, 8]
    %a = ew.silu(%g)
    %y = ew.mul(%a, %u)
    return %y
after:
    input %g: f32[num_tokens, 8]
    input %u: f32[num_tokens, 8]
    %y = nn.act_mul(%g, %u) {act="silu"}
    return %y
"""

from __future__ import annotations

from ..ir.graph import Graph, Node, Value
from ..ir.rewrite import Inputs, Replacement, Rewriter, rewrite, use_lists

_ACTS = tuple(f"ew.{name}" for name in ("silu", "gelu", "gelu_tanh", "relu", "sigmoid", "tanh"))


def run(graph: Graph) -> Graph:
    uses = use_lists(graph)

    def rule(rw: Rewriter, node: Node, inputs: Inputs) -> Replacement:
        if node.op != "ew.mul":
            return None
        single_use = [value is not None and len(uses[value]) == 1 for value in node.inputs]
        return (_gated(rw, *inputs) if single_use[0] else None) or (_gated(rw, *inputs[::-1]) if single_use[1] else None)

    return rewrite(graph, rule)


def _gated(rw: Rewriter, activated: Value | None, up: Value | None) -> Replacement:
    act = rw.producer(activated, *_ACTS)
    if act is None or activated is None or up is None or up.dims != activated.dims or rw.is_fixed(up):
        return None
    return rw.add("nn.act_mul", [act.inputs[0], up], {"act": act.op.removeprefix("ew.")})
