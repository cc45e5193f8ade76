"""The one entry point: the whole model where it fits in memory, else a small twin and the real layers streamed one at a time.

Both ways end in the same comparison of logits, on the artifact in the C++ executor. The streamed way also compares the hidden state
behind every layer; the whole way does so only to name the layer when the logits differ.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path

from friendli_runtime.free_memory import free_memory_bytes

from ..errors import FmoError, SelfCheckFailed
from ..frontend.checkpoint import Checkpoint
from ..frontend.source import ModelSource
from ..frontend.trace import TracedModel
from ..plan.model import Plan
from ..quantize.assign import Policy
from .artifact_runner import PackedModel, output_width
from .failure import not_runnable
from .layers import check_streamed
from .memory import whole_model_bytes
from .probes import MAX_PROBED_WINDOW, Probes, attention_windows, make_probes
from .result import LayerError, SelfCheckResult
from .twin import make_twin
from .whole_model import Outcome, check_whole_model

Progress = Callable[[str, float], None]  # (what is running, fraction done 0 … 1)
TWIN_NAME = "a small twin of the model"
TWIN_SHARE = 0.3  # of the progress bar


def run_self_check(
    artifact_dir: Path,
    source: ModelSource,
    traced: TracedModel,
    checkpoint: Checkpoint,
    *,
    dtype: str,  # "fp32" or "bf16": how matrices are stored that are not quantized
    plan: Plan | None = None,  # of the artifact; needed where it has quantized weights
    policy: Policy | None = None,  # how the artifact was quantized: so is the twin
    available_memory_bytes: int | None = None,  # None: what this machine (and its cgroup) has free
    progress: Progress | None = None,
) -> SelfCheckResult:
    """Compares the complete artifact in `artifact_dir` with transformers.

    Raises SelfCheckFailed where they disagree, and where they cannot be compared."""
    started = time.perf_counter()
    progress = progress or (lambda what, fraction: None)
    model = PackedModel(artifact_dir, plan.weights if plan is not None else ())
    probes = probes_for(model, source, traced)
    free = free_memory_bytes() if available_memory_bytes is None else available_memory_bytes
    is_whole = whole_model_bytes(traced.num_params, model.num_bytes, probes.num_tokens, output_width(model.plan)) <= free
    twin = None
    if not is_whole or needs_twin(traced):
        progress("a small twin", 0.0)
        twin = _check_twin(traced, dtype, policy or Policy())
    rest = _scaled(progress, TWIN_SHARE if twin else 0.0)
    if is_whole:
        outcome = check_whole_model("the artifact", model, source.folder, traced, probes, rest, checkpoint.edits)
        layers: list[LayerError] = []
    else:
        outcome, layers = check_streamed(model, traced, checkpoint.read, probes, rest)
    return SelfCheckResult(
        status="passed",
        mode="whole-model" if is_whole else "twin+layers",
        max_abs_error=outcome.max_abs_error,
        tolerance=outcome.tolerance,
        num_probe_tokens=probes.num_tokens + (twin.num_tokens if twin else 0),
        greedy_tokens_equal=outcome.greedy_tokens_equal,
        layers=layers,
        seconds=time.perf_counter() - started,
        twin_max_abs_error=twin.max_abs_error if twin else None,
        num_unstable_tokens=outcome.num_unstable,
    )


def probes_for(model: PackedModel, source: ModelSource, traced: TracedModel) -> Probes:
    """Probes from the vocabulary that both the token table and the logits have."""
    text_config = traced.config.get_text_config()
    vocab_size = min(int(model.plan["vocab_size"]), int(text_config.vocab_size))
    windows = attention_windows(traced.graph)
    return make_probes(vocab_size, _special_ids(source), traced.max_context_len, windows)


def _special_ids(source: ModelSource) -> Iterable[int]:
    """Every token id that the config names."""
    values = [value for name, value in source.config_dict.items() if name.endswith("_token_id")]
    flat = [token for value in values for token in (value if isinstance(value, list) else [value])]
    return [token for token in flat if isinstance(token, int)]


def needs_twin(traced: TracedModel) -> bool:
    """Whether some window is too long for probes of the real model to outgrow, while served sequences may: the twin has a short one."""
    return any(MAX_PROBED_WINDOW < window < traced.max_context_len for window in attention_windows(traced.graph))


def _check_twin(traced: TracedModel, dtype: str, policy: Policy) -> Outcome:
    with tempfile.TemporaryDirectory(prefix="fmo-twin-") as folder:
        try:
            twin = make_twin(traced, dtype, Path(folder), policy)
        except SelfCheckFailed:
            raise
        except (FmoError, ValueError, RuntimeError) as error:  # what transformers, the reader, the passes or the planner refuse
            raise not_runnable(TWIN_NAME, error) from error
        model = PackedModel(twin.artifact_dir, twin.plan.weights)
        probes = probes_for(model, twin.source, twin.traced)
        return check_whole_model(TWIN_NAME, model, twin.source.folder, twin.traced, probes)


def _scaled(progress: Progress, start: float) -> Progress:
    """Progress of what comes after `start`."""
    return lambda what, fraction: progress(what, start + (1 - start) * fraction)
