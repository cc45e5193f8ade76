"""Positions at which the reference itself is undecided are recognised, and only those."""

from __future__ import annotations

import numpy as np
import torch

from friendli_compile.self_check.compare import tolerance_for
from friendli_compile.self_check.reference import reference_logits
from friendli_compile.self_check.stability import unstable_rows
from tests.frontend.architectures import tiny_model

TOKENS = np.random.default_rng(0).integers(3, 256, 40).astype(np.int32)


def test_a_router_with_two_equal_experts_is_unstable_and_an_ordinary_one_is_not() -> None:
    model = tiny_model("mixtral")
    logits = reference_logits(model, TOKENS)
    (ordinary,) = unstable_rows(model, [TOKENS], [logits], tolerance_for(logits))
    assert not ordinary.any()
    routers = [module for name, module in model.named_modules() if name.endswith("gate")]
    assert routers
    with torch.no_grad():
        for router in routers:
            router.weight[1] = router.weight[0] * (1 + 1e-7)
            router.weight[3] = router.weight[2] * (1 + 1e-7)
    logits = reference_logits(model, TOKENS)
    (undecided,) = unstable_rows(model, [TOKENS], [logits], tolerance_for(logits))
    assert undecided.any()
