"""Rotary tables that transformers chooses while it runs, by the longest position of the whole batch, are chosen once at compile time.

    rope_type longrope   short table up to original_max_position_embeddings tokens, long table beyond
    rope_type dynamic    the plain table up to max_position_embeddings tokens, a table per length beyond (refused)

In a packed batch one long sequence would change the table of every other; so the compiled model has one table and a context limit
that fits it. `freeze_rope_tables` is applied to the traced model and to the reference that it is compared with.
"""

from __future__ import annotations

from typing import Any

import torch
from transformers import PreTrainedModel
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from ..errors import UnsupportedModel

FROZEN = "frozen"  # a rope_type that transformers' update hook leaves alone


def freeze_rope_tables(model: PreTrainedModel, max_context_len: int | None) -> tuple[int | None, list[str]]:
    """Fixes the table of every rotary module of `model`. `max_context_len` None: as long as the short table is right.

    Returns the context limit that the tables impose (None: no limit) and what the user should know."""
    limit: int | None = None
    notes: list[str] = []
    for path, module in model.named_modules():
        for layer_type, rope_type in _varying_types(module):
            choose = _freeze_longrope if rope_type == "longrope" else _freeze_dynamic
            own_limit, note = choose(path, module, layer_type, max_context_len)
            notes += [note] if note not in notes else []
            limit = own_limit if limit is None else min(limit, own_limit)
    return limit, notes


def _varying_types(module: torch.nn.Module) -> list[tuple[str | None, str]]:
    """(layer type or None, rope type) of the tables that vary at run time."""
    rope_type = getattr(module, "rope_type", None)
    kinds = list(rope_type.items()) if isinstance(rope_type, dict) else [(None, rope_type)]
    return [(layer, kind) for layer, kind in kinds if isinstance(kind, str) and (kind == "longrope" or "dynamic" in kind)]


def _parameters(module: Any, layer_type: str | None) -> dict[str, Any]:
    parameters = module.config.rope_parameters
    return parameters[layer_type] if layer_type is not None else parameters


def _mark_frozen(module: Any, layer_type: str | None) -> None:
    module.rope_type = FROZEN if layer_type is None else {**module.rope_type, layer_type: FROZEN}


def _freeze_longrope(path: str, module: Any, layer_type: str | None, max_context_len: int | None) -> tuple[int, str]:
    short_len = int(_parameters(module, layer_type)["original_max_position_embeddings"])
    long_len = max(short_len, int(module.config.max_position_embeddings))
    wants_long = max_context_len is not None and max_context_len > short_len
    if wants_long:
        kwargs = {} if layer_type is None else {"layer_type": layer_type}
        table, _ = ROPE_INIT_FUNCTIONS["longrope"](module.config, torch.device("cpu"), seq_len=short_len + 1, **kwargs)
        name = "inv_freq" if layer_type is None else f"{layer_type}_inv_freq"
        module.register_buffer(name, table, persistent=False)
    _mark_frozen(module, layer_type)
    if wants_long:
        return (
            long_len,
            f"longrope: the long table is used for every sequence; transformers has a short one for those up to {short_len} tokens",
        )
    return (
        short_len,
        f"longrope: the short table is used, for at most {short_len} tokens; a longer context (up to {long_len}) gets the long table",
    )


def _freeze_dynamic(path: str, module: Any, layer_type: str | None, max_context_len: int | None) -> tuple[int, str]:
    plain_len = int(module.original_max_seq_len)
    if max_context_len is not None and max_context_len > plain_len:
        why = f"rope_type 'dynamic' has another table for every length beyond {plain_len} tokens, and {max_context_len} are asked for"
        raise UnsupportedModel(why, module=path, op="rotary embedding", hint=f"compile with a context of at most {plain_len}")
    _mark_frozen(module, layer_type)
    return plain_len, f"rope_type 'dynamic': the table for up to {plain_len} tokens is used, which is also the longest context"
