"""The exception tree of the compiler: every mistake of a user ends as one of these.

Their three parts, what happened, where and what to do, are those of the runtime's FmoError, the root of both trees.

    FmoError                 1
    ├── SourceError          the model folder or hub id: missing, not JSON, unknown model_type, unreadable
    │   └── CheckpointError  safetensors: missing, truncated, wrong shape, unknown dtype
    ├── UnsupportedModel     cannot be traced or lowered: names the module, the op and the source line
    ├── OutputError          the artifact folder: not empty, disk full, not writable
    ├── SelfCheckFailed      the artifact disagrees with transformers
    ├── QualityGateFailed    the quantized model is further from the model than its budget allows
    └── InternalError        3: a bug of ours
"""

from friendli_runtime.errors import FmoError as FmoError


class SourceError(FmoError):
    """The model folder or hub id cannot be used as it is."""


class CheckpointError(SourceError):
    """A weight file or a tensor in it is not what the config promises."""


class UnsupportedModel(FmoError):
    """The model's own code does something that cannot be compiled.

    `module` is its path in the model, `op` the aten op, `source_line` the `file:line` of the model's code.
    """

    def __init__(self, why: str, *, module: str = "", op: str = "", source_line: str = "", hint: str = "") -> None:
        places = [("module", module), ("op", op), ("line", source_line)]
        where = ", ".join(f"{name} {value}" for name, value in places if value)
        super().__init__(why, where=where, hint=hint or "run `fmo check MODEL` for the whole list; the model cannot be compiled as it is")
        self.module = module
        self.op = op
        self.source_line = source_line


class OutputError(FmoError):
    """The artifact cannot be written where it was asked for."""


class SelfCheckFailed(FmoError):
    """The compiled artifact and transformers disagree; nothing is emitted."""


class QualityGateFailed(FmoError):
    """Quantization costs more than the budget allows, or its cost cannot be measured; nothing is emitted."""


class InternalError(FmoError):
    """A state that the compiler should have made impossible."""

    exit_code = 3
