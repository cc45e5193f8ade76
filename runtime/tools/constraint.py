"""What one request with tools may answer: the grammar of its calls, and where its stop strings count."""

from __future__ import annotations

from collections.abc import Sequence

from ..structured.constraint import Constraint, ConstraintCompiler, SampleMasks
from .dialect import CallDialect
from .grammar import call_grammar
from .request import ToolRequest


class CallConstraint:
    """As `structured.constraint.Constraint`; a stop string counts in text before the first call only."""

    def __init__(self, inner: Constraint, trigger: str | None, *, is_required: bool) -> None:
        self._inner = inner
        self._trigger = trigger
        self._is_required = is_required
        self.first_mask = inner.first_mask

    def sample(self) -> SampleMasks:
        return self._inner.sample()

    def accepts(self, text: str) -> bool:
        return not self._is_required and (self._trigger is None or self._trigger not in text)


def call_constraint(
    request: ToolRequest, dialect: CallDialect, compiler: ConstraintCompiler, end_ids: Sequence[int]
) -> CallConstraint | None:
    """None when nothing can be enforced: the model may call, but its calls begin with no mark of their own. Raises InvalidConstraint."""
    if not request.is_required and dialect.trigger is None:
        return None
    grammar = call_grammar(dialect, request.schemas, compiler.tokenizer, is_required=request.is_required, is_parallel=request.is_parallel)
    return CallConstraint(compiler.compile(grammar, end_ids, param="tools"), dialect.trigger, is_required=request.is_required)
