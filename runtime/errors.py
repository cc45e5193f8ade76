"""The root of all our exceptions, and the tree of the runtime: every failure that a user or an operator can cause.

An error has three parts: what happened (with the values), where (file, tensor, option) and what to do.
`str(error)` is those parts on lines of their own; the command line prints it without a traceback and leaves with `exit_code`.

    FmoError               1
    ├── ArtifactError      the artifact folder: missing, not an artifact, unreadable
    │   ├── CorruptArtifact        a missing file, a size or a hash that differs, a malformed plan
    │   └── IncompatibleArtifact   a newer schema, another target, an instruction set that this machine lacks
    └── ConfigError        an option or a file that the server was started with
"""


class FmoError(Exception):
    """A failure whose reader is the user. `what` is required; `where` and `hint` are left out of the text when empty."""

    exit_code = 1

    def __init__(self, what: str, *, where: str = "", hint: str = "") -> None:
        super().__init__(what)
        self.what = what
        self.where = where
        self.hint = hint

    def __str__(self) -> str:
        parts = [self.what]
        if self.where:
            parts.append(f"  where: {self.where}")
        if self.hint:
            parts.append(f"  try: {self.hint}")
        return "\n".join(parts)


class ArtifactError(FmoError):
    """The artifact cannot be opened."""


class CorruptArtifact(ArtifactError):
    """A file of the artifact is missing or is not what the manifest says."""


class IncompatibleArtifact(ArtifactError):
    """The artifact is intact but not for this program or this machine."""


class ConfigError(FmoError):
    """An option or an input file of the server is unusable."""
