"""Every torch op that has a translation gives what torch gives: small functions exported, imported and interpreted."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from friendli_compile.errors import UnsupportedModel
from friendli_compile.frontend.importer import import_program
from friendli_compile.frontend.lint import check_token_local
from friendli_compile.ir.graph import Graph
from friendli_compile.ir.interpreter import interpret

WIDTH, NUM_TOKENS = 8, 6
Function = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]  # x [1, num_tokens, WIDTH] f32, positions [1, num_tokens] → any


class Small(torch.nn.Module):
    def __init__(self, function: Function) -> None:
        super().__init__()
        self.model = torch.nn.Embedding(32, WIDTH)
        self.function = function

    def forward(self, input_ids: torch.Tensor, position_ids: torch.Tensor) -> torch.Tensor:
        return self.function(self.model(input_ids), position_ids)


def imported(small: Small) -> Graph:
    num_tokens = torch.export.Dim("num_tokens", min=3, max=1024)
    ids = torch.zeros(1, NUM_TOKENS, dtype=torch.int64)
    program = torch.export.export(small, (ids, ids.clone()), dynamic_shapes=({1: num_tokens}, {1: num_tokens}), strict=False)
    return import_program(program, {"weight": "weight"})


def check(function: Function) -> None:
    small = Small(function).eval()
    ids, positions = torch.randint(0, 32, (1, NUM_TOKENS)), torch.tensor([[0, 1, 2, 0, 1, 2]])
    with torch.no_grad():
        expected = small(ids, positions).numpy()
        graph = imported(small)
    check_token_local(graph)
    inputs = {"input_ids": ids.numpy().astype(np.int32), "position_ids": positions.numpy().astype(np.int32)}
    (found,) = interpret(graph, inputs, {"weight": small.model.weight.detach().numpy()})
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


def filled_by_slices(x: torch.Tensor) -> torch.Tensor:
    out = x.new_empty(*x.shape[:-1], 12)
    out[..., 8:] = x[..., :4]
    out[..., :8] = x
    return out


def overwritten(x: torch.Tensor) -> torch.Tensor:
    y = x * 1.0
    y[..., 2:4] = x[..., :2]
    return y


def in_place_through_an_alias(x: torch.Tensor) -> torch.Tensor:
    y = x + 1
    same = y.contiguous()
    y.mul_(2)
    return same + y


def copied_before_it_changes(x: torch.Tensor) -> torch.Tensor:
    y = (x + 1).transpose(1, 2)
    before = y.contiguous()
    y.mul_(2)
    return before


def rotated_as_complex(x: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
    angle = positions[..., None].float() * torch.arange(1, 5)
    turned = torch.view_as_complex(x.reshape(*x.shape[:-1], 4, 2)) * torch.polar(torch.ones_like(angle), angle)
    return torch.view_as_real(turned).flatten(-2)


def scattered_back(x: torch.Tensor) -> torch.Tensor:
    chosen = x.topk(3).indices
    return torch.zeros_like(x).scatter(-1, chosen, x.gather(-1, chosen)).scatter(-1, x.topk(1)[1], 9.0)


TABLE = torch.arange(24.0).reshape(12, 2)
FUNCTIONS: dict[str, Function] = {
    "arithmetic": lambda x, p: (2 - x) * 3 / (x.abs() + 1) - x.neg() + torch.rsub(x, 1, alpha=2) + torch.add(x, x, alpha=0.5),
    "powers": lambda x, p: x.pow(2) + (x * x + 1).pow(-0.5) + torch.pow(2.0, x) + x.square() + x.abs().sqrt() + (x * x + 1).rsqrt(),
    "exponentials": lambda x, p: x.exp() + (x.abs() + 1).log() + x.abs().log1p() + torch.expm1(x) + x.reciprocal(),
    "activations": lambda x, p: F.silu(x) + F.gelu(x) + F.gelu(x, approximate="tanh") + F.relu(x) + x.sigmoid() + x.tanh(),
    "more activations": lambda x, p: F.softplus(x) + F.logsigmoid(x) + F.leaky_relu(x, 0.1) + torch.erf(x) + x.sin() + x.cos(),
    "clamps": lambda x, p: x.clamp(-0.5, 0.5) + x.clamp(min=0.1) + x.clamp(max=x.mean(-1, keepdim=True)),
    "comparisons": lambda x, p: torch.where((x > 0) & ~(x >= 1) | (x < -1), x, -x).masked_fill(x == 0, 3.0) + (x.ne(0)).float(),
    "integers": lambda x, p: x + ((p // 2) % 2 + p.floor_divide(3)).unsqueeze(-1) * 0.5,
    "rounding": lambda x, p: torch.floor(x * 4) + torch.div(x, 0.3, rounding_mode="floor"),
    "reductions": lambda x, p: x.sum(-1, keepdim=True) + x.mean((2,), keepdim=True) + x.amax(-1, keepdim=True) + x.amin(-1, keepdim=True),
    "max with index": lambda x, p: x.max(-1)[0] + x.max(-1)[1] + x.min(-1)[0] + x.min(-1)[1],
    "argmax": lambda x, p: x.argmax(-1, keepdim=True) + x,
    "norms": lambda x, p: F.layer_norm(x, (WIDTH,), torch.arange(8.0), torch.ones(8)) + F.rms_norm(x, (WIDTH,), torch.arange(8.0), 1e-5),
    "softmax": lambda x, p: x.softmax(-1) + x.log_softmax(-1) + x.cumsum(-1),
    "views": lambda x, p: x.view(1, -1, 2, 4).transpose(2, 3).reshape(1, -1, 8) + x.unflatten(-1, (4, 2)).permute(0, 1, 3, 2).flatten(2),
    "squeezes": lambda x, p: x.unsqueeze(2).squeeze(2) + x[0].unsqueeze(0) + x.movedim(1, 2).swapaxes(1, 2) + x.mT.mT,
    "slices": lambda x, p: x[..., 1:3] + x[..., -2:] + x[..., ::4] + x[..., 0:1] + x.select(-1, -1).unsqueeze(-1),
    "splits": lambda x, p: sum(x.split([2, 2, 4], -1)[2].chunk(2, -1)) + x.split(2, -1)[1] + torch.stack(x.unbind(-1)[:2], -1),
    "joins": lambda x, p: torch.cat([x, x * 2], -1) + torch.stack([x, x], 2).flatten(2),
    "repeats": lambda x, p: x.repeat(1, 1, 2) + x.repeat_interleave(2, -1) + x.unsqueeze(2).expand(-1, -1, 2, -1).flatten(2),
    "padding": lambda x, p: F.pad(x, (1, 2)) + F.pad(x, (4, -1), value=1.0),
    "constants": lambda x, p: x + torch.full((8,), 2.0) + torch.ones_like(x) + torch.zeros(8) + x.new_ones(1),
    "ranges": lambda x, p: x + torch.arange(8) + torch.arange(0, 1, 0.125),
    "tables": lambda x, p: F.embedding(p, TABLE) + TABLE[p] + TABLE.index_select(0, p[0]).unsqueeze(0),
    "constant index": lambda x, p: x[..., [1, 2, 5]] + x[:, :, [-1]] + x.index_select(-1, torch.tensor([0, 3, 7])),
    "gather and scatter": lambda x, p: scattered_back(x),
    "sort": lambda x, p: x.sort(-1, descending=True).values + x.sort(-1).values,
    "one hot": lambda x, p: F.one_hot(p, 8) * x,
    "products": lambda x, p: x @ TABLE[:8] + torch.addmm(torch.ones(2), x[0], TABLE[:8], beta=2, alpha=3),
    "linear": lambda x, p: F.linear(x, TABLE[:8].T, torch.ones(2)),
    "casts": lambda x, p: x.to(torch.int64) + x.type_as(x) + (x > 0).to(x.dtype) + p.float().unsqueeze(-1),
    "dropout in eval mode": lambda x, p: F.dropout(x, 0.5, training=False),
    "in place": lambda x, p: (x * 1).add_(1).mul_(x).clamp_(-1, 1),
    "in place through an alias": lambda x, p: in_place_through_an_alias(x),
    "a copy made before a change": lambda x, p: copied_before_it_changes(x).transpose(1, 2),
    "filled by slices": lambda x, p: filled_by_slices(x),
    "overwritten slice": lambda x, p: overwritten(x),
    "complex rotation": rotated_as_complex,
}  # fmt: skip


@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_translated_op_gives_what_torch_gives(name: str) -> None:
    torch.manual_seed(0)
    check(FUNCTIONS[name])


def stale_view(x: torch.Tensor) -> torch.Tensor:
    y = x + 1
    part = y[..., :4]
    y.mul_(2)
    return part


def half_filled(x: torch.Tensor) -> torch.Tensor:
    out = x.new_empty(*x.shape[:-1], 12)
    out[..., :8] = x
    return out


REFUSED: dict[str, tuple[Function, str]] = {
    "an op without a translation": (lambda x, p: torch.linalg.vector_norm(x, dim=-1), "no translation"),
    "a double": (lambda x, p: x.double(), "float64"),
    "a view of a tensor that is changed in place": (lambda x, p: stale_view(x), "changed in place"),
    "a tensor that is read before it is filled": (lambda x, p: half_filled(x) * 2, "before all of it is written"),
    "the first token only": (lambda x, p: x[:, 0], "mix sequences"),
    "every token but the first": (lambda x, p: x[:, 1:], "belong to several sequences"),
    "tokens merged with heads": (lambda x, p: x.view(-1, 4), "rows are not the tokens"),
    "the number of tokens as a number": (lambda x, p: x / x.shape[1], "num_tokens|no translation|has no"),
    "dropout that is on": (lambda x, p: F.dropout(x, 0.5, training=True), "eval mode"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_has_no_meaning_for_a_packed_batch_is_refused_with_its_op_and_line(name: str) -> None:
    function, message = REFUSED[name]
    with pytest.raises(UnsupportedModel, match=message) as caught:
        imported(Small(function))
    assert caught.value.op and "test_translations.py:" in caught.value.source_line


def test_what_the_result_does_not_depend_on_is_not_imported() -> None:
    def wasteful(x: torch.Tensor, p: torch.Tensor) -> torch.Tensor:
        torch.linalg.vector_norm(x, dim=-1)
        return x + 1

    assert [node.op for node in imported(Small(wasteful)).nodes] == ["nn.embedding", "ew.add"]
