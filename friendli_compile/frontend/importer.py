"""From an ExportedProgram to the graph "as traced": one graph node per live torch op, torch's dims and order.

    placeholders ─▶ inputs, params (from the checkpoint), constants (buffers with values)
    call_function ─▶ a translation of aten_pointwise / aten_shape / aten_compute
    x.op_(…)      ─▶ the functional op; every name of the same tensor moves to the result; a write into a slice rebuilds its base

Only what the logits depend on is imported, in one pass each way, so a graph of 10,000 nodes takes seconds. An op without a translation
is refused with its module and source line.
"""

from __future__ import annotations

import operator
import re
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.fx import Node as FxNode

from ..errors import InternalError, UnsupportedModel
from ..ir.builder import GraphBuilder
from ..ir.graph import Graph, Source, Value
from . import aten_compute, aten_make, aten_pointwise, aten_shape
from .aten_call import Call, ComplexValue, EmptyValue
from .blame import shorten_path

TRANSLATIONS = {**aten_pointwise.TRANSLATIONS, **aten_shape.TRANSLATIONS, **aten_make.TRANSLATIONS, **aten_compute.TRANSLATIONS}
CHECKS_ONLY = ("_assert_tensor_metadata", "_assert_scalar", "sym_constrain_range_for_size", "sym_constrain_range", "_assert_async")
WRAPPER_PREFIX = "model."  # the traced function holds the model under this name
STACK_FRAME = re.compile(r'File "([^"]+)", line (\d+)')
KEEPS_TOKENS_ALONE = ("conv1d",)  # torch says num_tokens + k where the graph says num_tokens; the lint refuses these


def import_program(program: torch.export.ExportedProgram, readable: dict[str, str]) -> Graph:
    """The graph of a program that maps (input_ids, position_ids) `[1, num_tokens]` to logits `[1, num_tokens, vocab_size]`.

    `readable`: the name of each tensor that a checkpoint gives → the name to use (tied ones share one). Raises UnsupportedModel."""
    return _Importer(program, readable).run()


@dataclass
class _Aliases:
    """Which fx nodes may share memory, and until where each is used."""

    group: dict[FxNode, FxNode] = field(default_factory=dict)  # node → the node that made the memory
    members: dict[FxNode, list[FxNode]] = field(default_factory=dict)
    position: dict[FxNode, int] = field(default_factory=dict)


class _Importer:
    def __init__(self, program: torch.export.ExportedProgram, readable: dict[str, str]) -> None:
        self.program = program
        self.readable = readable
        self.builder = GraphBuilder()
        self.nodes: list[FxNode] = list(program.graph_module.graph.nodes)
        self.env: dict[FxNode, Any] = {}
        self.aliases = _find_aliases(self.nodes)
        self.live = _live_nodes(self.nodes, self.aliases)
        self.params: dict[str, Value] = {}
        self.num_kv_layers = 0
        self.locations: dict[str, str] = {}
        self.num_tokens = self._token_symbol()

    def run(self) -> Graph:
        outputs: list[Value] = []
        for node in self.nodes:
            if node.op == "placeholder":
                self._placeholder(node)
            elif node.op == "output":
                outputs = [self._final(node, result) for result in node.args[0] if result is not None]  # type: ignore[union-attr]
            elif node in self.live:
                self._call(node)
        return self.builder.finish(outputs)

    def _token_symbol(self) -> Any:
        ids = next(node for node in self.nodes if node.op == "placeholder" and node.name == "input_ids")
        return ids.meta["val"].shape[1]

    def _final(self, node: FxNode, result: Any) -> Value:
        call = Call("output", {}, Source(aten_op="output"), self.builder, self.num_tokens, None)
        return call.real(self.env.get(result), "the result")

    # --- sources

    def _placeholder(self, node: FxNode) -> None:
        signature = self.program.graph_signature
        if node.name in ("input_ids", "position_ids"):
            self.env[node] = self.builder.input(node.name, (1, "num_tokens"), "i32")
            return
        if node not in self.live:
            return
        tables = (signature.inputs_to_parameters, signature.inputs_to_buffers, signature.inputs_to_lifted_tensor_constants)
        target = next((table[node.name] for table in tables if node.name in table), None)
        if target is None:
            raise InternalError(f"the exported program has an input '{node.name}' that is neither parameter nor buffer")
        data = self.program.constants.get(target)
        if data is None:
            data = self.program.state_dict.get(target)
        name = target.removeprefix(WRAPPER_PREFIX)
        if isinstance(data, torch.Tensor) and not _is_fake(data):
            self.env[node] = self.builder.constant(data.detach().numpy(), name if data.ndim else "")
        else:
            self.env[node] = self._param(name, node)

    def _param(self, own_name: str, node: FxNode) -> Value:
        if own_name not in self.readable:
            raise UnsupportedModel(
                "a buffer is used that has no value before the weights are loaded and is not a float tensor of them", module=own_name
            )
        name = self.readable[own_name]
        if name not in self.params:
            shape = tuple(int(size) for size in node.meta["val"].shape)
            self.params[name] = self.builder.param(name, shape)
        return self.params[name]

    # --- calls

    def _call(self, node: FxNode) -> None:
        target = node.target
        if target is operator.getitem:
            self.env[node] = self.env[node.args[0]][node.args[1]]  # type: ignore[index]
            return
        source = self._source(node)
        if node.op != "call_function" or not isinstance(target, torch._ops.OpOverload):
            if isinstance(node.meta.get("val"), torch.SymInt | torch.SymFloat | torch.SymBool | int):
                self.env[node] = node.meta["val"]
                return
            raise UnsupportedModel(
                "this step of the program has no translation", module=source.module, op=source.aten_op, source_line=source.location
            )
        name = _base_name(target)
        if name in CHECKS_ONLY:
            return
        if name == "sym_size":
            self.env[node] = node.meta["val"]
            return
        if _is_slice(node) and self._only_overwritten(node, node):
            return  # a place to write to, not a value
        call = self._bind(node, target, source)
        if _is_in_place(target):
            self._in_place(node, call)
        else:
            self.env[node] = self._translate(call, node)

    def _bind(self, node: FxNode, target: Any, source: Source) -> Call:
        """The call with every argument of the op's schema by name."""
        args: dict[str, Any] = {}
        for position, parameter in enumerate(target._schema.arguments):
            if position < len(node.args) and not parameter.kwarg_only:
                args[parameter.name] = self._operand(node.args[position])
            elif parameter.name in node.kwargs:
                args[parameter.name] = self._operand(node.kwargs[parameter.name])
            elif parameter.has_default_value():
                args[parameter.name] = parameter.default_value
        return Call(
            _base_name(target).removesuffix("_") if _is_in_place(target) else _base_name(target),
            args, source, self.builder, self.num_tokens, node.meta.get("val"), self.num_kv_layers,
        )  # fmt: skip

    def _operand(self, argument: Any) -> Any:
        if isinstance(argument, FxNode):
            return self.env.get(argument)
        if isinstance(argument, list | tuple):
            return [self._operand(item) for item in argument]
        return argument

    def _translate(self, call: Call, node: FxNode) -> Any:
        translation = TRANSLATIONS.get(call.name)
        if translation is None:
            raise call.unsupported("this op has no translation")
        result = translation(call)
        if call.name == "attention":
            self.num_kv_layers += 1
        if call.name not in KEEPS_TOKENS_ALONE:
            self._require_type(call, result)
        return result

    def _require_type(self, call: Call, result: Any) -> None:
        """What was built must have the dims and dtype that torch says."""
        results = result if isinstance(result, list) else [result]
        fakes = call.fake if isinstance(call.fake, list | tuple) else [call.fake]
        for value, fake in zip(results, fakes, strict=False):
            if isinstance(value, EmptyValue | ComplexValue):
                continue
            expected = (call.dims_of(fake), call.dtype_of(fake))
            if (value.dims, value.dtype) != expected:
                raise InternalError(
                    f"{call.source.aten_op} became {value}, expected {expected[1]}{list(expected[0])}", where=str(call.source)
                )

    def _in_place(self, node: FxNode, call: Call) -> None:
        """x.op_(…): the result replaces x under every name that x has."""
        target: Any = node.args[0]
        self._require_no_state(target, call)
        if call.name == "copy":
            self._copy_into(node, target, call)
            return
        old = self.env[target]
        new = self._translate(call, node)
        self.env[node] = new
        for member in self._others_in_use(node, target):
            if self.env.get(member) is not old:
                raise call.unsupported("a tensor is changed in place while a view of it is still used")
            self.env[member] = new
        self.env[target] = new

    def _require_no_state(self, target: FxNode, call: Call) -> None:
        """Inputs, parameters and buffers must not be written to."""
        origin = self.aliases.group[target]
        if origin.op == "placeholder":
            raise call.unsupported(f"{origin.name} is written to, so one step would change the next")

    def _copy_into(self, node: FxNode, target: FxNode, call: Call) -> None:
        """target.copy_(src): target is a whole tensor, or a slice of one that is rebuilt around `src`."""
        src = call.cast(call.expand(call.value("src"), call.dims), call.dtype)
        base = target.args[0] if _is_slice(target) else None
        for member in self._others_in_use(node, target):
            if member is not base and not self._only_overwritten(member, node):
                raise call.unsupported("a tensor is changed in place while a view of it is still used")
        if isinstance(base, FxNode):
            source = self._source(target)
            cut = self._bind(target, target.target, source)
            old = self.env[base]
            dim = int(cut.args.get("dim", 0)) % len(old.dims)
            size = old.dims[dim]
            if isinstance(size, int):
                start, stop, step = aten_shape.slice_bounds(cut, size)
                if step != 1:
                    raise call.unsupported("writing every n-th element has no translation")
                self.env[base] = aten_shape.write_slice(call, old, dim, start, stop, src)
            elif call.dims == old.dims:
                self.env[base] = src
            else:
                raise call.unsupported("some of the packed tokens are written, which belong to several sequences")
        self.env[target] = self.env[node] = src

    def _others_in_use(self, node: FxNode, target: FxNode) -> list[FxNode]:
        """Other names of target's memory that something live after `node` reads."""
        now = self.aliases.position[node]
        members = self.aliases.members[self.aliases.group[target]]
        others = [member for member in members if member not in (target, node) and self.aliases.position[member] < now]
        return [m for m in others if any(self.aliases.position[user] > now for user in m.users if user in self.live)]

    def _only_overwritten(self, member: FxNode, node: FxNode) -> bool:
        """Whether everything after `node` that reads `member` overwrites all of it."""
        now = self.aliases.position[node]
        later = [user for user in member.users if user in self.live and self.aliases.position[user] > now]
        return all(isinstance(u.target, torch._ops.OpOverload) and _base_name(u.target) == "copy_" and u.args[0] is member for u in later)

    # --- where a node comes from

    def _source(self, node: FxNode) -> Source:
        stack = node.meta.get("nn_module_stack")
        path = next(reversed(stack.values()))[0] if stack else ""
        return Source(path.removeprefix(WRAPPER_PREFIX.rstrip(".")).lstrip("."), str(node.target), self._location(node))

    def _location(self, node: FxNode) -> str:
        trace = node.meta.get("stack_trace") or ""
        if trace not in self.locations:
            frames = [(file, line) for file, line in STACK_FRAME.findall(trace) if "/torch/" not in file]
            self.locations[trace] = f"{shorten_path(frames[-1][0])}:{frames[-1][1]}" if frames else ""
        return self.locations[trace]


def _base_name(target: Any) -> str:
    """aten::add_.Tensor → add_."""
    return target._schema.name.split("::")[1]


def _is_in_place(target: Any) -> bool:
    name = _base_name(target)
    return name.endswith("_") and not name.startswith("__")


def _is_slice(node: FxNode) -> bool:
    return isinstance(node.target, torch._ops.OpOverload) and _base_name(node.target) == "slice"


def _is_fake(tensor: torch.Tensor) -> bool:
    return isinstance(tensor, torch._subclasses.fake_tensor.FakeTensor) or isinstance(
        getattr(tensor, "data", None), torch._subclasses.fake_tensor.FakeTensor
    )


def _find_aliases(nodes: list[FxNode]) -> _Aliases:
    """Views, in-place results and ops that return their argument share its memory."""
    aliases = _Aliases()
    for position, node in enumerate(nodes):
        aliases.position[node] = position
        origin = node
        if node.op == "call_function" and node.args and isinstance(node.args[0], FxNode) and _shares_memory(node):
            origin = aliases.group[node.args[0]]
        aliases.group[node] = origin
        aliases.members.setdefault(origin, []).append(node)
    return aliases


def _shares_memory(node: FxNode) -> bool:
    if node.target is operator.getitem:
        pieces = node.args[0]
        assert isinstance(pieces, FxNode)
        return isinstance(pieces.target, torch._ops.OpOverload) and _base_name(pieces.target) in aten_shape.VIEWS
    if not isinstance(node.target, torch._ops.OpOverload):
        return False
    name = _base_name(node.target)
    if name in aten_shape.MAYBE_SAME:
        return _is_same_memory(node)
    return _is_in_place(node.target) or name in aten_shape.VIEWS


def _is_same_memory(node: FxNode) -> bool:
    """Whether an op that copies only if it must returned its argument: same dtype, same strides."""
    before, after = node.args[0].meta["val"], node.meta["val"]  # type: ignore[union-attr]
    return before.dtype == after.dtype and str(before.stride()) == str(after.stride())


def _live_nodes(nodes: list[FxNode], aliases: _Aliases) -> set[FxNode]:
    """What the output depends on, in-place writes into memory that is read later included."""
    live: set[FxNode] = set()
    live_memory: set[FxNode] = set()
    for node in reversed(nodes):
        writes = node.op == "call_function" and isinstance(node.target, torch._ops.OpOverload) and _is_in_place(node.target)
        if node.op != "output" and node not in live and not (writes and aliases.group[node] in live_memory):
            continue
        live.add(node)
        live_memory.add(aliases.group[node])
        live.update(node.all_input_nodes)
        live_memory.update(aliases.group[argument] for argument in node.all_input_nodes)
    return live
