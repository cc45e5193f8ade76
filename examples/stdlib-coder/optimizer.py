"""Muon for the matrices of the layers, AdamW for embeddings and norms, and the learning-rate schedule of both.

Muon (Jordan et al. 2024, https://kellerjordan.github.io/posts/muon/): momentum, then the nearest semi-orthogonal matrix by five
Newton–Schulz steps. Computed in float32 and for all matrices of one shape at once, since torch.optim.Muon rounds to bfloat16, which
CPUs without bfloat16 units emulate slowly.
"""

import torch
from torch import Tensor, nn

NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)
NUM_NEWTON_SCHULZ_STEPS = 5
NUM_WARMUP_STEPS = 60


class Muon(torch.optim.Optimizer):
    """Expects two-dimensional parameters only."""

    def __init__(self, params: list[nn.Parameter], lr: float, momentum: float = 0.95, weight_decay: float = 0.05):
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:
        for group in self.param_groups:
            by_shape: dict[torch.Size, list[nn.Parameter]] = {}
            for param in group["params"]:
                by_shape.setdefault(param.shape, []).append(param)
            for shape, params in by_shape.items():
                updates = orthogonalize(torch.stack([self.nesterov(param, group["momentum"]) for param in params]))
                scale = group["lr"] * max(1.0, shape[0] / shape[1]) ** 0.5
                for param, update in zip(params, updates, strict=True):
                    param.mul_(1 - group["lr"] * group["weight_decay"]).add_(update, alpha=-scale)

    def nesterov(self, param: nn.Parameter, momentum: float) -> Tensor:
        """Updates the momentum buffer of one parameter and looks one step ahead."""
        state = self.state[param]
        if "momentum" not in state:
            state["momentum"] = torch.zeros_like(param)
        state["momentum"].lerp_(param.grad, 1 - momentum)
        return param.grad.lerp(state["momentum"], momentum)


def orthogonalize(matrices: Tensor) -> Tensor:
    """matrices [count, rows, columns] → about U Vᵀ of each."""
    a, b, c = NEWTON_SCHULZ
    wide = matrices.shape[1] <= matrices.shape[2]
    x = matrices if wide else matrices.mT
    x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
    for _ in range(NUM_NEWTON_SCHULZ_STEPS):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x if wide else x.mT


def make_optimizers(model: nn.Module, muon_lr: float, adam_lr: float) -> list[torch.optim.Optimizer]:
    """Every parameter belongs to exactly one of the two."""
    matrices = [param for name, param in model.named_parameters() if name.endswith("_proj.weight")]
    rest = [param for name, param in model.named_parameters() if not name.endswith("_proj.weight")]
    return [Muon(matrices, muon_lr), torch.optim.AdamW(rest, adam_lr, betas=(0.9, 0.95), weight_decay=0.0)]


def learning_rate_scale(step: int, num_steps: int, num_decay_steps: int) -> float:
    """Linear warm-up, then constant, then linear to zero over the last `num_decay_steps`."""
    return min(1.0, (step + 1) / NUM_WARMUP_STEPS, (num_steps - step) / num_decay_steps)
