"""How long a sequence may be: what the config promises, what the tables in the graph hold, and what the user asked for."""

from __future__ import annotations

from transformers import PreTrainedConfig

from ..errors import UnsupportedModel
from ..ir.graph import Graph, Node, Value

DEFAULT_CONTEXT_LEN = 2048  # for models without positions in their config (ALiBi)
CONFIG_FIELDS = ("max_position_embeddings", "max_seq_len", "seq_length", "n_positions", "max_sequence_length")


def choose_context_len(config: PreTrainedConfig, graph: Graph, wanted: int | None, rope_limit: int | None) -> tuple[int, list[str]]:
    """The longest context and what the user should know. Raises UnsupportedModel when `wanted` exceeds a learned position table."""
    text_config = config.get_text_config()
    fields = [int(value) for name in CONFIG_FIELDS if isinstance(value := getattr(text_config, name, None), int) and value > 0]
    promised = fields[0] if fields else None
    if wanted is None:
        limits = [limit for limit in (promised, rope_limit) if limit is not None]
        if limits:
            return min(limits), []
        return DEFAULT_CONTEXT_LEN, [f"the config names no context length; {DEFAULT_CONTEXT_LEN} tokens are assumed"]
    table = _position_table(graph)
    if table is not None and promised is not None and wanted > promised:
        why = f"a context of {wanted} tokens is asked for, and the table of positions ends at {promised}"
        raise UnsupportedModel(why, module=table.source.module, op=table.source.aten_op, source_line=table.source.location,
                               hint=f"ask for at most {promised}")  # fmt: skip
    limit = rope_limit if rope_limit is not None else promised
    notes = [f"a context of {wanted} tokens goes beyond the {limit} that the model was made for"] if limit and wanted > limit else []
    return wanted, notes


def _position_table(graph: Graph) -> Node | None:
    """The lookup of a table by position, if the model has one."""
    producers = graph.producers()
    for node in graph.nodes:
        index = {"nn.embedding": 1, "tensor.gather": 1}.get(node.op)
        if index is not None and _comes_from_positions(node.inputs[index], producers, graph):
            return node
    return None


def _comes_from_positions(value: Value | None, producers: dict[Value, Node], graph: Graph) -> bool:
    """Whether `value` is position_ids up to integer arithmetic and reshapes."""
    stack, seen = [value], set()
    while stack:
        current = stack.pop()
        if current is None or current in seen or current.dtype != "i32":
            continue
        seen.add(current)
        if current in graph.inputs:
            if current.name == "position_ids":
                return True
            continue
        if current in producers:
            stack.extend(producers[current].inputs)
    return False
