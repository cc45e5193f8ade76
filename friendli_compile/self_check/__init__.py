"""The self-check: a compiled artifact is compared with transformers on the same weights, and refused when they disagree.

The driver calls `run_self_check` once per compile, between packing and the final rename: the artifact is complete in its temporary
folder, and is thrown away when `SelfCheckFailed` is raised. `SelfCheckResult.to_json()` goes into the report and the manifest.

    whole-model   the model fits in memory: transformers in float32 on weights rounded as stored, against the C++ executor
    twin+layers   else: a small twin of the same config goes through the whole compiler and is compared, and the real layers are
                  streamed through transformers one at a time and compared with the executor on the mapped artifact
"""

from .result import LayerError, SelfCheckResult
from .run import run_self_check

__all__ = ["LayerError", "SelfCheckResult", "run_self_check"]
