"""Text form of a graph: prints, and parses back to the same graph.

    input %input_ids: i32[num_tokens]
    param %embed.weight: f32[1000, 64]
    const %c0: f32[2] = [1.0, 2.5]                      (more than 16 elements: base64 of the little-endian bytes)
    %v0: f32[num_tokens, 64] = nn.embedding(%embed.weight, %input_ids)
    %v1: f32[num_tokens, 64] = ew.mul(%v0, 8.0) @ ["model", "aten.mul.Tensor", "modeling.py:12"]
    return %v1

0-d constants are written as literals (1.5 f32, 2 i32, true bool), absent operands as `_`, attributes as JSON in braces unless they
have their default. When parsing, the types of node outputs may be left out (they are inferred), `#` begins a comment line.
"""

from __future__ import annotations

import base64
import json
import math
import re
from collections.abc import Iterator

import numpy as np

from .builder import GraphBuilder
from .graph import Attr, Dims, Graph, GraphError, Node, Source, Value
from .ops import lookup
from .reference import NUMPY_DTYPES

_MAX_INLINE = 16
_NAME = r"[^\s,:(){}\[\]=@]+"
_TYPED = re.compile(rf"%({_NAME})(?:: (f32|i32|bool)\[([^\]]*)\])?")
_SOURCE_LINE = re.compile(rf"(input|param|const) %({_NAME}): (f32|i32|bool)\[([^\]]*)\](?: = (.*))?$")
_CALL = re.compile(r"([a-z_.0-9]+)\(([^)]*)\)")


def print_graph(graph: Graph, sources: bool = False, elide_constants: bool = False) -> str:
    """The graph as text; `elide_constants` leaves the data of arrays out (then it does not parse back)."""
    lines = [f"input {value}" for value in graph.inputs] + [f"param {value}" for value in graph.params]
    lines += [f"const {value} = {_data(data, elide_constants)}" for value, data in graph.constants.items() if data.ndim]
    lines += [print_node(node, graph, sources) for node in graph.nodes]
    lines.append("return " + ", ".join(_operand(value, graph) for value in graph.outputs))
    return "\n".join(lines) + "\n"


def print_node(node: Node, graph: Graph, sources: bool = False) -> str:
    """One line."""
    outputs = ", ".join(str(value) for value in node.outputs)
    defaults = {spec.name: spec.default for spec in lookup(node.op).attrs}
    attrs = ", ".join(f"{name}={_attr(value)}" for name, value in node.attrs.items() if value != defaults.get(name))
    line = f"{outputs} = {node.op}({', '.join(_operand(value, graph) for value in node.inputs)})"
    line += f" {{{attrs}}}" if attrs else ""
    if sources and node.source != Source():
        line += " @ " + json.dumps([node.source.module, node.source.aten_op, node.source.location])
    return line


def _operand(value: Value | None, graph: Graph) -> str:
    if value is None:
        return "_"
    return value.name if not value.dims and value in graph.constants else f"%{value.name}"


def _attr(value: Attr) -> str:
    return json.dumps(value)


def _data(data: np.ndarray, elide: bool) -> str:
    if data.size <= _MAX_INLINE:
        return json.dumps(data.ravel().tolist())
    return "…" if elide else json.dumps(base64.b64encode(np.ascontiguousarray(data).tobytes()).decode())


def parse_graph(text: str) -> Graph:
    """The graph of the text; raises GraphError naming the line."""
    parser = _Parser()
    for number, line in enumerate(text.splitlines(), 1):
        stripped = line.strip()
        if not stripped or stripped.startswith("#"):
            continue
        try:
            parser.line(stripped)
        except GraphError as error:
            raise GraphError(error.what, f"line {number}: {stripped}", error.try_) from None
    return parser.builder.finish(parser.outputs)


class _Parser:
    def __init__(self) -> None:
        self.builder = GraphBuilder()
        self.values: dict[str, Value] = {}
        self.outputs: list[Value] = []

    def line(self, line: str) -> None:
        if line.startswith("return "):
            self.outputs = [self.operand(text) for text in _split(line[len("return ") :])]  # type: ignore[misc]
        elif match := _SOURCE_LINE.match(line):
            kind, name, dtype, dims, data = match.groups()
            self.values[name] = self.source(kind, name, dtype, _dims(dims), data)
        else:
            self.node(line)

    def source(self, kind: str, name: str, dtype: str, dims: Dims, data: str | None) -> Value:
        if kind == "input":
            return self.builder.input(name, dims, dtype)
        if kind == "param":
            return self.builder.param(name, dims, dtype)
        if data is None:
            raise GraphError("a constant needs data")
        decoded = json.loads(data)
        array: np.ndarray
        if isinstance(decoded, str):
            array = np.frombuffer(base64.b64decode(decoded), NUMPY_DTYPES[dtype])
        else:
            array = np.array(decoded, NUMPY_DTYPES[dtype])
        return self.builder.constant(array.reshape(dims), name)  # type: ignore[arg-type]

    def node(self, line: str) -> None:
        left, separator, right = line.partition(" = ")
        call = _CALL.match(right)
        if not separator or call is None:
            raise GraphError("not a line of a graph", try_="write `%y = op(%x, …) {attr=…}`")
        rest = right[call.end() :].strip()
        attrs, rest = _attrs(rest) if rest.startswith("{") else ({}, rest)
        source = Source(*json.loads(rest[1:])) if rest.startswith("@") else Source()
        operands = [self.operand(text) for text in _split(call.group(2))]
        produced = self.builder.add(call.group(1), operands, attrs, source)
        self.rename(left, produced if isinstance(produced, tuple) else (produced,))

    def rename(self, left: str, produced: tuple[Value, ...]) -> None:
        """Gives the outputs of the last node the names (and checks the types) that the text says."""
        named = _TYPED.findall(left)
        if len(named) != len(produced):
            raise GraphError(f"the op has {len(produced)} outputs, the line names {len(named)}")
        for (name, dtype, dims), value in zip(named, produced, strict=True):
            if dtype and (_dims(dims), dtype) != (value.dims, value.dtype):
                raise GraphError(f"%{name} is written as {dtype}[{dims}], the op gives {value.dtype}{list(value.dims)}")
        outputs = self.builder.rename_last([name for name, _, _ in named])
        self.values.update({value.name: value for value in outputs})

    def operand(self, text: str) -> Value | None:
        if text == "_":
            return None
        if not text.startswith("%"):
            return self.builder.constant(_number(text))
        if text[1:] not in self.values:
            raise GraphError(f"{text} is not defined above")
        return self.values[text[1:]]


def _split(text: str) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()]


def _dims(text: str) -> Dims:
    return tuple(int(part) if part.lstrip("-").isdigit() else part for part in _split(text))


def _number(text: str) -> np.ndarray:
    if text in ("true", "false"):
        return np.array(text == "true")
    try:
        value = float(text)
    except ValueError:
        raise GraphError(f"'{text}' is neither a %value nor a number") from None
    is_int = math.isfinite(value) and re.fullmatch(r"-?\d+", text) is not None
    return np.array(int(text), np.int32) if is_int else np.array(value, np.float32)


def _attrs(text: str) -> tuple[dict[str, Attr], str]:
    """`{a=1, b=[2, 3]} rest` → the attributes and the rest."""
    decoder, attrs, position = json.JSONDecoder(), {}, 1
    for name, start in _attr_starts(text):
        if start < position:
            continue  # an `=` inside a JSON string
        try:
            attrs[name], position = decoder.raw_decode(text, start)
        except json.JSONDecodeError as error:
            raise GraphError(f"attribute '{name}' is not JSON: {error}") from None
    end = text.find("}", position)
    if end < 0:
        raise GraphError("'}' is missing")
    return attrs, text[end + 1 :].strip()


def _attr_starts(text: str) -> Iterator[tuple[str, int]]:
    for match in re.finditer(r"[{,]\s*(\w+)=", text):
        yield match.group(1), match.end()
