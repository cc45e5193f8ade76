"""Computes the masks of constrained samples on threads of its own, while the model runs the next step.

    dispatcher: token of a constrained sample ─▶ feeder thread: grammar advances ─▶ set_mask (or fail_sample)

Neither the step thread nor the delivery of other requests' tokens waits for a mask. Each sample has at most one mask on its way: the engine
gives no further token of it before.
"""

from __future__ import annotations

import logging
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Protocol

NUM_THREADS = 2
_log = logging.getLogger(__name__)


class Masks(Protocol):
    """The masks of one sample; `structured.constraint.SampleMasks` is one."""

    def advance(self, token_id: int) -> bytes: ...


class MaskSource(Protocol):
    """What constrains the samples of a request; `structured.constraint.Constraint` is one."""

    first_mask: bytes

    def sample(self) -> Masks: ...


class MaskFeeder:
    """`core`: the C++ engine, which gets every mask. Starts no thread before the first mask."""

    def __init__(self, core: Any) -> None:
        self._core = core
        self._pool = ThreadPoolExecutor(NUM_THREADS, "fmo-masks")

    def advance(self, request_id: int, sample_idx: int, masks: Masks, token_id: int, next_position: int) -> None:
        """Computes the mask of output token `next_position`, which follows `token_id`."""
        self._pool.submit(self._advance, request_id, sample_idx, masks, token_id, next_position)

    def close(self) -> None:
        """Drops what is not computed yet. Call it after the engine has stopped."""
        self._pool.shutdown(wait=True, cancel_futures=True)

    def _advance(self, request_id: int, sample_idx: int, masks: Masks, token_id: int, next_position: int) -> None:
        try:
            self._core.set_mask(request_id, sample_idx, next_position, masks.advance(token_id))
        except Exception as error:  # without a mask the sample would wait for ever
            if not isinstance(error, RuntimeError):
                _log.exception("the mask of request %d failed", request_id)
            self._core.fail_sample(request_id, sample_idx, f"{CONSTRAINT_ERROR}{error}")


CONSTRAINT_ERROR = "constraint: "
"""How the error of a sample begins whose constraint failed."""
