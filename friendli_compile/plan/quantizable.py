"""Which weights of a plan could be quantized, and what each is for.

    find_candidates(graph, plan) -> [Candidate]         `plan` made from `graph` without quantization

A matrix of a linear layer, of experts or of a token table qualifies when its values are parameters moved about, and nobody else reads
those parameters: then the rounded matrix is the model's own with rounded parameters, which is what the self-check compares with.
Routers are left out (ir/routers.py), and tables that are not looked up by token ids.
"""

from __future__ import annotations

from collections import Counter

from ..ir.graph import Graph, Node, Value
from ..ir.routers import router_linears
from ..quantize.assign import Candidate
from .lower import layer_of
from .model import Plan, WeightSpec
from .movement import is_invertible

WEIGHT_OPERANDS = {"nn.linear": (1,), "moe.experts": (3, 4), "nn.embedding": (0,)}


def find_candidates(graph: Graph, plan: Plan) -> list[Candidate]:
    """In the order of the plan's weights."""
    uses = _weight_uses(graph)
    readers = Counter(param.name for spec in plan.weights for param in spec.expression.params)
    head = next((node for node in reversed(graph.nodes) if node.op == "nn.linear"), None)
    return [
        _candidate(spec, uses[spec.expression.root], head)
        for spec in plan.weights
        if _is_wanted(uses.get(spec.expression.root, [])) and _is_alone(spec, readers)
    ]


def _weight_uses(graph: Graph) -> dict[Value, list[tuple[Node, bool]]]:
    """Weight value → the nodes that read it, and whether each may read a rounded one."""
    routers = router_linears(graph)
    token_ids = {value for value in graph.inputs if value.name == "input_ids"}
    uses: dict[Value, list[tuple[Node, bool]]] = {}
    for node in graph.nodes:
        is_open = node not in routers and (node.op != "nn.embedding" or node.inputs[1] in token_ids)
        for position in WEIGHT_OPERANDS.get(node.op, ()):
            value = node.inputs[position]
            if value is not None:
                uses.setdefault(value, []).append((node, is_open))
    return uses


def _is_wanted(uses: list[tuple[Node, bool]]) -> bool:
    return bool(uses) and all(is_open for _, is_open in uses)


def _is_alone(spec: WeightSpec, readers: Counter[str]) -> bool:
    """Whether its parameters are read by this weight only, each element at most once."""
    return (
        spec.expression.root.dtype == "f32"
        and all(readers[param.name] == 1 for param in spec.expression.params)
        and is_invertible(spec.expression)
    )


def _candidate(spec: WeightSpec, uses: list[tuple[Node, bool]], head: Node | None) -> Candidate:
    nodes = [node for node, _ in uses]
    ops = {node.op for node in nodes}
    module = nodes[-1].source.module
    params = tuple(param.name for param in spec.expression.params)
    group = nodes[0].output.name if "moe.experts" in ops else spec.name
    return Candidate(spec.name, _role(nodes, ops, head), spec.dims, params, module, group, layer_of(module))


def _role(nodes: list[Node], ops: set[str], head: Node | None) -> str:
    """`head`: the last linear layer, which gives the logits."""
    if "moe.experts" in ops:
        return "experts"
    if "nn.embedding" in ops:
        return "embedding" if ops == {"nn.embedding"} else "tied"
    return "head" if head in nodes else "linear"
