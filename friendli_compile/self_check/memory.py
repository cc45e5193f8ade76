"""How much memory comparing the whole model takes."""

from __future__ import annotations

MARGIN = 1.15  # of what is counted, for what is not: activations, the allocator, the file cache of the weights being loaded
FIXED_BYTES = 256 << 20  # torch and the executor themselves
F32_BYTES = 4
LOGIT_COPIES = 3  # ours, the reference's, and their difference


def whole_model_bytes(num_params: int, artifact_bytes: int, num_probe_tokens: int, vocab_size: int) -> int:
    """transformers in float32, the artifact, and the logits of both."""
    logits = num_probe_tokens * vocab_size * F32_BYTES * LOGIT_COPIES
    return int((num_params * F32_BYTES + artifact_bytes + logits) * MARGIN) + FIXED_BYTES
