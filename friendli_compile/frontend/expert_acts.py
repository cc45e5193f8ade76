"""Which activation an experts module applies between its two projections, found by trying it.

A module's gate function is plain Python that may be overridden, so its name proves nothing: it is run on random numbers and compared
with every function that `moe.experts` knows, gate and up rows one after the other or interleaved. No match → refused.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from transformers import PreTrainedModel

from ..errors import UnsupportedModel

NUM_PROBES, PROBE_WIDTH = 64, 6  # rows, intermediate size
PROBE_SCALE = 4.0  # wide enough to reach every clamp and tail
TOLERANCE = 1e-5

# Unary functions by their name in the graph (ew.*).
UNARY_ACTS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "silu": F.silu,
    "gelu": F.gelu,
    "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
    "relu": F.relu,
    "sigmoid": torch.sigmoid,
    "tanh": torch.tanh,
    "softplus": F.softplus,
}


@dataclass(frozen=True)
class ExpertAct:
    """`name` is a unary function or `swiglu_clamped` (with `alpha` and `limit`); `interleaved`: gate rows are the even ones."""

    name: str
    interleaved: bool = False
    alpha: float = 0.0
    limit: float = 0.0


def classify_experts(model: PreTrainedModel) -> None:
    """Gives every experts module of `model` its `fmo_act`. Raises UnsupportedModel for an unknown one."""
    for path, module in model.named_modules():
        if not hasattr(module, "is_concatenated") or not hasattr(module, "_apply_gate"):
            continue
        if getattr(module, "has_post_expert_norm", False):
            raise UnsupportedModel("experts apply a norm after each expert, which is not supported", module=path, op="experts")
        module.fmo_act = _classify(path, module)  # type: ignore[assignment]


def classify_unary(path: str, function: Callable[[torch.Tensor], torch.Tensor]) -> str:
    """The name of a unary activation. Raises UnsupportedModel for an unknown one."""
    probe = PROBE_SCALE * torch.randn(NUM_PROBES, generator=torch.Generator().manual_seed(0))
    for name, known in UNARY_ACTS.items():
        if torch.allclose(known(probe), function(probe), rtol=TOLERANCE, atol=TOLERANCE):
            return name
    raise UnsupportedModel("the experts' activation is none that is known", module=path, op="experts")


def _classify(path: str, module: torch.nn.Module) -> ExpertAct:
    generator = torch.Generator().manual_seed(0)
    width = PROBE_WIDTH * (2 if module.has_gate else 1)
    probe = PROBE_SCALE * torch.randn(NUM_PROBES, width, generator=generator)
    apply = module._apply_gate if module.has_gate else module.act_fn
    try:
        with torch.no_grad():
            found = apply(probe)  # type: ignore[operator]
    except Exception as error:
        raise UnsupportedModel(f"the experts' activation cannot be tried out: {error}", module=path, op="experts") from error
    for act, result in _candidates(module, probe):
        if result.shape == found.shape and torch.allclose(result, found, rtol=TOLERANCE, atol=TOLERANCE):
            return act
    where = f"{type(module).__name__}._apply_gate"
    raise UnsupportedModel("the experts' activation is none that is known", module=path, op="experts", source_line=where)


def _candidates(module: torch.nn.Module, probe: torch.Tensor) -> Iterator[tuple[ExpertAct, torch.Tensor]]:
    """Every activation that could be, with its value on `probe` [NUM_PROBES, 2 * PROBE_WIDTH or PROBE_WIDTH]."""
    if not module.has_gate:
        yield from ((ExpertAct(name), function(probe)) for name, function in UNARY_ACTS.items())
        return
    for interleaved in (False, True):
        gate, up = (probe[:, 0::2], probe[:, 1::2]) if interleaved else probe.chunk(2, dim=-1)
        for name, function in UNARY_ACTS.items():
            yield ExpertAct(name, interleaved), function(gate) * up
        alpha, limit = _number(module, "alpha"), _number(module, "limit")
        if alpha is not None and limit is not None:
            clamped, linear = gate.clamp(max=limit), up.clamp(-limit, limit)
            yield ExpertAct("swiglu_clamped", interleaved, alpha, limit), (linear + 1) * clamped * torch.sigmoid(alpha * clamped)


def _number(module: torch.nn.Module, name: str) -> float | None:
    value = getattr(module, name, None)
    return float(value) if isinstance(value, int | float) else None
