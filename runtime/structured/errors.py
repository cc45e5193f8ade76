"""What can be wrong with a constraint: the request's own mistake, found before it runs, or a dead end met while it runs."""

from __future__ import annotations


class InvalidConstraint(ValueError):
    """The constraint cannot be followed: it is malformed, unsupported or too large. `param` is the field of the request to blame."""

    def __init__(self, message: str, param: str = "response_format") -> None:
        super().__init__(message)
        self.param = param


class ConstraintFailed(RuntimeError):
    """A constraint that was accepted came to a point where no token can follow, or cost more than it may."""
