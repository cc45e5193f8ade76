"""From an artifact to a bound executor: the Python side of `csrc/executor`.

    executor = load_executor(Artifact.open(folder), num_threads=2, num_blocks=512)
    logits = executor.forward(input_ids, position_ids, cu_seqlens, context_lens, block_tables, logit_rows)

The plan goes to C++ as parsed JSON; the weights go as places in files, which C++ maps into memory without copying. What the C++ core
refuses becomes an `ArtifactError` or a `ConfigError` with its three parts.
"""

from __future__ import annotations

from ._core import Executor
from .artifact import Artifact
from .errors import ArtifactError, ConfigError, CorruptArtifact


def load_executor(
    artifact: Artifact,
    *,
    num_threads: int = 0,
    max_num_tokens: int = 512,
    max_num_logits: int = 64,
    num_blocks: int = 256,
    kv_dtype: str | None = None,
    isa: str = "auto",
    quantize_activations: bool = True,
) -> Executor:
    """Binds the plan of an artifact.

    num_threads: 0 takes as many as the process may use. max_num_tokens, max_num_logits: rows of the largest step.
    num_blocks: KV blocks of 16 tokens. kv_dtype: f32, bf16 or i8, None takes the artifact's. isa: auto, scalar or avx2.
    quantize_activations: False computes with activations as they are, whatever the plan says of quantized weights.
    Raises CorruptArtifact when the plan and the weights do not fit together, ConfigError for an option out of range.
    """
    weights = {name: (str(place.path), place.offset, place.num_bytes) for name, place in artifact.weights.items()}
    try:
        return Executor(
            artifact.plan,
            weights,
            num_threads=num_threads,
            max_num_tokens=max_num_tokens,
            max_num_logits=max_num_logits,
            num_blocks=num_blocks,
            kv_dtype=artifact.kv_dtype if kv_dtype is None else kv_dtype,
            isa=isa,
            quantize_activations=quantize_activations,
        )
    except RuntimeError as error:
        raise _in_three_parts(error, str(artifact.folder)) from None


def kernels_of_calls(artifact: Artifact) -> list[str]:
    """The kernel of each call of the plan on this machine, in plan order, e.g. `linear.cpu.avx2.bf16`."""
    executor = load_executor(artifact, num_threads=1, max_num_tokens=1, max_num_logits=1, num_blocks=1)
    return [call["kernel"] for call in executor.calls()]


def _in_three_parts(error: RuntimeError, folder: str) -> ArtifactError | ConfigError:
    """The core's message (`what`, `where: …`, `try: …` on lines of their own) as an exception of the runtime."""
    what, where, hint = str(error), "", ""
    if "\nwhere: " in what:
        what, _, rest = what.partition("\nwhere: ")
        where, _, hint = rest.partition("\ntry: ")
    if where.startswith(("plan.json", "weight ")):
        return CorruptArtifact(what, where=f"{folder}, {where}", hint=hint)
    return ConfigError(what, where=where, hint=hint)
