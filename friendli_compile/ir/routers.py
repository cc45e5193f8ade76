"""Which linear layers choose experts: those whose results reach the ids or the weights of `moe.experts`.

They stay alone (a pass may not merge them with others) and in full precision: a small error here sends a token to another expert.
"""

from __future__ import annotations

from .graph import Graph, Node, Value

EXPERT_IDS, EXPERT_WEIGHTS = 1, 2  # operands of moe.experts


def router_linears(graph: Graph) -> frozenset[Node]:
    """Walks up from every choice of experts to the nearest linear layers."""
    producers = graph.producers()
    found: set[Node] = set()
    seen: set[Value] = set()
    stack = [value for node in graph.nodes if node.op == "moe.experts" for value in node.inputs[EXPERT_IDS : EXPERT_WEIGHTS + 1]]
    while stack:
        value = stack.pop()
        node = producers.get(value) if value is not None and value not in seen else None
        if value is None or node is None:
            continue
        seen.add(value)
        if node.op == "nn.linear":
            found.add(node)
        elif not _is_elsewhere(node):
            stack.extend(node.inputs)
    return frozenset(found)


def _is_elsewhere(node: Node) -> bool:
    """Whether the walk has left the router: behind a norm, an attention or other experts comes the rest of the model."""
    return node.op.startswith(("attn.", "moe.", "nn.")) and node.op not in ("nn.softmax", "nn.act_mul")
