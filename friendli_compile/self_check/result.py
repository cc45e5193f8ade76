"""What a passed self-check says. A failed one is the exception `SelfCheckFailed`; there is no result that says "failed"."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any, Literal

Mode = Literal["whole-model", "twin+layers"]


@dataclass(frozen=True)
class LayerError:
    """How far the hidden state after one decoder layer is from that of transformers."""

    layer: int
    module: str  # path of the layer, e.g. model.layers.3
    max_abs_error: float
    tolerance: float


@dataclass(frozen=True)
class SelfCheckResult:
    """The figures that report.json and manifest.json record."""

    status: Literal["passed"]
    mode: Mode
    max_abs_error: float  # of logits, over all probe positions
    tolerance: float  # absolute, for these logits
    num_probe_tokens: int
    greedy_tokens_equal: bool  # at every position; False only where the reference's two best logits are closer than the tolerance
    layers: list[LayerError] = field(default_factory=list)  # empty for the whole model, which is compared by its logits
    seconds: float = 0.0
    twin_max_abs_error: float | None = None  # of the small twin, where one was made
    num_unstable_tokens: int = 0  # positions left out because transformers' own logits jump there under rounding noise

    def to_json(self) -> dict[str, Any]:
        return asdict(self)
