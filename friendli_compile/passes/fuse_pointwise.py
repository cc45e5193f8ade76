"""What is left of pointwise chains becomes `ew.program`: one pass over memory instead of one per op.

Ops join when they have the same dims and the value between them is read nowhere else. Walking from the results upwards, an op joins the
group of its readers if they are all in one group. 0-d constants are written into the code.

before:
    input %x: f32[num_tokens, 8]
    input %z: f32[num_tokens, 8]
    %a = ew.div(%x, 30.0)
    %b = ew.tanh(%a)
    %y = ew.mul(%b, %z)
    return %y
after:
    input %x: f32[num_tokens, 8]
    input %z: f32[num_tokens, 8]
    %y = ew.program(%x, %z) {code=[["div", ["in", 0], ["const", 30.0]], ["tanh", ["reg", 0]], ["mul", ["reg", 1], ["in", 1]]]}
    return %y
"""

from __future__ import annotations

from dataclasses import dataclass, field

from ..ir.graph import Graph, Node, Value
from ..ir.ops import POINTWISE
from ..ir.rewrite import Inputs, Replacement, Rewriter, rewrite, use_lists

MAX_CODE = 32  # registers that a kernel keeps per tile
MAX_INPUTS = 8


@dataclass
class _Group:
    """The ops of one program; `root` is the last one."""

    root: Node
    nodes: list[Node] = field(default_factory=list)  # from the root upwards

    def inputs_with(self, node: Node, constants: set[Value]) -> int:
        """How many inputs the program has once `node` joined."""
        members = {*self.nodes, node}
        made = {member.output for member in members}
        return len({v for member in members for v in member.operands if v not in made and v not in constants})


def run(graph: Graph) -> Graph:
    groups = {group.root: group for group in _groups(graph) if len(group.nodes) > 1}
    inside = {node for group in groups.values() for node in group.nodes} - set(groups)

    def rule(rw: Rewriter, node: Node, inputs: Inputs) -> Replacement:
        if node in groups:
            return _program(rw, groups[node])
        return node.output if node in inside else None  # inside: nobody but its program reads it

    return rewrite(graph, rule)


def _groups(graph: Graph) -> list[_Group]:
    uses = use_lists(graph)
    outputs = set(graph.outputs)
    fixed = set(graph.params) | set(graph.constants)
    for node in graph.nodes:
        if all(value in fixed for value in node.operands):
            fixed.update(node.outputs)
    scalars = {value for value in graph.constants if not value.dims}
    group_of: dict[Node, _Group] = {}
    groups: list[_Group] = []
    for node in reversed(graph.nodes):
        if node.op not in POINTWISE or node.output in fixed:
            continue
        group = None if node.output in outputs else _common_group(node, uses[node.output], group_of)
        if group is None or len(group.nodes) >= MAX_CODE or group.inputs_with(node, scalars) > MAX_INPUTS:
            group = _Group(node)
            groups.append(group)
        group.nodes.append(node)
        group_of[node] = group
    return groups


def _common_group(node: Node, users: list[Node], group_of: dict[Node, _Group]) -> _Group | None:
    """The one group that all readers of the node belong to, if it works on the same dims."""
    first = group_of.get(users[0]) if users else None
    if first is None or any(group_of.get(user) is not first for user in users):
        return None
    return first if first.root.output.dims == node.output.dims else None


def _program(rw: Rewriter, group: _Group) -> Value:
    inputs: dict[Value, int] = {}
    registers: dict[Value, int] = {}
    code: list[tuple] = []
    for node in reversed(group.nodes):
        operands = []
        for value in node.operands:
            data = rw.graph.constants.get(value)
            if value in registers:
                operands.append(("reg", registers[value]))
            elif data is not None and not value.dims:
                operands.append(("const", data.item()))
            else:
                operands.append(("in", inputs.setdefault(value, len(inputs))))
        registers[node.output] = len(code)
        code.append((node.op.removeprefix("ew."), *operands))
    rw.source = group.root.source
    result: Value = rw.add("ew.program", [rw.mapping[value] for value in inputs], {"code": code})
    return result
