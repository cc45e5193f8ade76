"""What one request with tools may answer: the grammar of its calls, and where its stop strings count."""

from __future__ import annotations

import re
from collections.abc import Sequence

from ..structured.constraint import Constraint, ConstraintCompiler, SampleMasks
from .dialect import CallDialect, Slot
from .grammar import call_beginnings, call_grammar
from .request import ToolRequest


class CallConstraint:
    """As `structured.constraint.Constraint`; a stop string counts in text before the first call only."""

    def __init__(self, inner: Constraint, first_call: re.Pattern[str], *, is_required: bool) -> None:
        """`first_call` is found in a text that has begun a call."""
        self._inner = inner
        self._first_call = first_call
        self._is_required = is_required
        self.first_mask = inner.first_mask

    def sample(self) -> SampleMasks:
        return self._inner.sample()

    def accepts(self, text: str) -> bool:
        return not self._is_required and self._first_call.search(text) is None


def call_constraint(
    request: ToolRequest, dialect: CallDialect, compiler: ConstraintCompiler, end_ids: Sequence[int]
) -> CallConstraint | None:
    """None when nothing can be enforced: the model may call, its calls begin with no mark, and special tokens stand before their arguments.

    Raises InvalidConstraint.
    """
    if dialect.trigger is not None:
        first_call = re.escape(dialect.trigger)
    else:
        before_args = [part for part in (dialect.head, *dialect.call[: dialect.call.index(Slot.ARGS)]) if isinstance(part, str)]
        if not request.is_required and any(isinstance(part, int) for part in compiler.tokenizer.split_special("\n".join(before_args))):
            return None
        first_call = rf"\A(?:{'|'.join(call_beginnings(dialect, list(request.schemas)))})"
    grammar = call_grammar(dialect, request.schemas, compiler.tokenizer, is_required=request.is_required, is_parallel=request.is_parallel)
    return CallConstraint(compiler.compile(grammar, end_ids, param="tools"), re.compile(first_call), is_required=request.is_required)
