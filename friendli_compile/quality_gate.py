"""The quality gate in the compiler: packs what is compared beside the artifact that is being written, and what --auto-mixed raises.

artifact      the folder that will be emitted; packed again where weights are raised
reference     nothing quantized, in the precision of the checkpoint              ┐
unquantized   nothing quantized, as --dtype says (often the same)                ├ in a folder of their own, removed afterwards
8bit          only the weights that could be raised to it, only when needed      ┘
"""

from __future__ import annotations

import glob
import shutil
from collections.abc import Callable, Collection, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from friendli_runtime.tokenizer.tokenizer import Tokenizer

from .plan.model import Plan
from .quality.budget import require_provable
from .quality.gate import MAX_SHOWN, QualityOptions, run_gate
from .quality.packed_run import Runnable
from .quality.probes import Vocabulary, default_num_tokens, make_probes
from .quality.record import quality_record
from .quantization import Quantized
from .quantize.assign import Policy

SCRATCH = "quality"  # folder inside of the artifact's, while it is being written

QuantizeAs = Callable[[Policy, str], Quantized]  # (policy, storage dtype of what is not quantized) → plan and schemes
WriteAs = Callable[[Path, Plan], None]  # writes plan.json and the weight files into a folder


class ModelPackings:
    """`Packings` of the model that is being compiled (quality/gate.py). `policy` and `quantized` are those of the artifact as it stands."""

    def __init__(
        self, folder: Path, policy: Policy, quantized: Quantized, *, quantize: QuantizeAs, write: WriteAs, dtype: str, source_dtype: str
    ) -> None:
        self.policy = policy
        self.quantized = quantized
        self._folder, self._scratch = folder, folder / SCRATCH
        self._quantize, self._write = quantize, write
        self._dtype, self._source_dtype = dtype, source_dtype
        self._packed: dict[str, Runnable] = {}

    def artifact(self) -> Runnable:
        return Runnable.open(self._folder)

    def reference(self) -> Runnable:
        return self._unquantized(self._source_dtype)

    def reference_bytes(self) -> int:
        """What `reference` takes on disk."""
        return sum(spec.num_bytes for spec in self._quantize(Policy(), self._source_dtype).plan.weights)

    def unquantized(self) -> Runnable:
        return self._unquantized(self._dtype)

    def packed_as(self, preset: str, weights: Collection[str]) -> Runnable | None:
        names = tuple(sorted(name for name in weights if self.quantized.schemes.get(name) is not None))
        plan = self._quantize(Policy("none", tuple((glob.escape(name), preset) for name in names)), self._dtype).plan
        formats = self.quantized.formats
        changed = [
            spec for spec in plan.weights if spec.name in names and spec.format is not None and spec.format != formats.get(spec.name)
        ]
        return self._pack(preset, replace(plan, weights=tuple(changed))) if changed else None

    def rewrite(self, presets: Mapping[str, str]) -> None:
        raised = tuple((glob.escape(name), preset) for name, preset in presets.items())
        self.policy = replace(self.policy, overrides=self.policy.overrides + raised)
        self.quantized = self._quantize(self.policy, self._dtype)
        for old in self._folder.glob("*.safetensors"):
            old.unlink()
        self._write(self._folder, self.quantized.plan)

    def discard(self) -> None:
        """Removes everything but the artifact."""
        self._packed.clear()
        shutil.rmtree(self._scratch, ignore_errors=True)

    def _unquantized(self, dtype: str) -> Runnable:
        return self._packed.get(dtype) or self._pack(dtype, self._quantize(Policy(), dtype).plan)

    def _pack(self, name: str, plan: Plan) -> Runnable:
        folder = self._scratch / name
        folder.mkdir(parents=True)
        self._write(folder, plan)
        self._packed[name] = Runnable.open(folder)
        return self._packed[name]


def measure_quality(
    packings: ModelPackings,
    options: QualityOptions,
    *,
    tokenizer_file: Path | None,
    vocabulary: Vocabulary,
    max_context_len: int,
    num_params: int,
    progress: Callable[[str, float], None],
) -> dict[str, Any]:
    """The record for report.json. Raises QualityGateFailed; the artifact may have been packed again."""
    try:
        num_tokens = options.num_tokens or default_num_tokens(num_params)
        require_provable(options.budget, num_tokens)
        progress("the reference", 0.0)
        tokenizer = Tokenizer.load(tokenizer_file.parent) if tokenizer_file is not None else None
        probes = make_probes(packings.reference(), tokenizer, vocabulary, max_context_len, num_tokens, options.probe)
        quality = run_gate(packings, probes, options, num_params, progress)
        return quality_record(quality, options, probes, packings.artifact().plan)
    finally:
        packings.discard()


def summary_line(record: Mapping[str, Any]) -> str:
    """The figures for a terminal."""
    overall = record["overall"]
    kl, drift, top1 = (overall[key]["value"] for key in ("mean_kl", "ppl_drift_percent", "top1_agreement"))
    return f"KL {kl:.3g} nats, perplexity {drift:+.2f} %, top-1 {100 * top1:.1f} % over {overall['num_tokens']} tokens"


def raised_line(record: Mapping[str, Any]) -> str:
    """`3 of 29 units, +1.20 MB: lm_head.weight=8bit, …`."""
    raised = record["raised"]
    shown = ", ".join(f"{name}={change['to']}" for change in raised[:MAX_SHOWN] for name in change["weights"])
    more = f" and {len(raised) - MAX_SHOWN} more" if len(raised) > MAX_SHOWN else ""
    return f"{len(raised)} units, {sum(change['added_bytes'] for change in raised) / 1e6:+.2f} MB: {shown}{more}"
