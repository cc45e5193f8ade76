"""Who may import what: the table of the architecture, enforced on the source.

Every import statement counts, also one inside a function, except where the table says "inside a verb" (the CLI imports lazily).
"""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
HEAVY = {"torch", "transformers", "triton"}

# folder or file → the project's own modules that it may import, and the heavy packages that it may import
ALLOWED: dict[str, tuple[set[str], set[str]]] = {
    "friendli_compile/ir": ({"ir", "errors"}, set()),
    "friendli_compile/passes": ({"ir", "passes", "errors"}, set()),
    "friendli_compile/frontend": ({"ir", "frontend", "errors"}, {"torch", "transformers"}),
    "friendli_compile/quantize": ({"ir", "quantize", "errors"}, {"torch"}),
    "friendli_compile/schedule": ({"ir", "schedule", "errors", "policy_db"}, set()),
    "friendli_compile/plan": ({"ir", "plan", "quantize", "schedule", "errors"}, set()),
    "friendli_compile/codegen": ({"plan", "codegen", "errors"}, {"triton"}),
    "friendli_compile/artifact": ({"plan", "quantize", "artifact", "errors"}, set()),
    "friendli_compile/lora": ({"lora", "frontend", "errors", "runtime"}, {"torch", "transformers"}),
    "friendli_compile/quality": ({"quality", "quantize", "self_check", "errors", "runtime"}, set()),
    "runtime": ({"runtime"}, set()),
    "policy_db": ({"policy_db"}, set()),
}


def imports_of(path: Path) -> Iterator[tuple[str, int]]:
    """Every absolute module name that `path` imports, with its line; relative imports are resolved."""
    package = path.relative_to(ROOT).with_suffix("").parts[:-1]
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else ()
            module = ".".join([*base, *([node.module] if node.module else [])])
            yield module, node.lineno
            if node.level and not node.module:
                yield from ((f"{module}.{alias.name}", node.lineno) for alias in node.names)


def own_part(module: str) -> str | None:
    """`friendli_compile.ir.graph` → `ir`; `friendli_runtime.engine` → `runtime`; not ours → None."""
    parts = module.split(".")
    top = {"friendli_runtime": "runtime", "runtime": "runtime", "friendli_policy_db": "policy_db", "policy_db": "policy_db"}
    if parts[0] == "friendli_compile":
        return parts[1] if len(parts) > 1 else None
    return top.get(parts[0])


@pytest.mark.parametrize("place", [place for place in ALLOWED if (ROOT / place).is_dir()])
def test_every_import_is_allowed_by_the_table(place: str) -> None:
    own, heavy = ALLOWED[place]
    wrong = []
    for path in sorted((ROOT / place).rglob("*.py")):
        for module, line in imports_of(path):
            part = own_part(module)
            if (part is not None and part not in own) or (module.split(".")[0] in HEAVY - heavy):
                wrong.append(f"{path.relative_to(ROOT)}:{line} imports {module}")
    assert not wrong, "\n".join(wrong)


def includes_of(path: Path) -> Iterator[str]:
    for line in path.read_text().splitlines():
        if line.startswith('#include "'):
            yield line.split('"')[1]


def test_the_core_includes_only_downwards() -> None:
    order = ["base", "json", "http", "tokenizer", "device", "kernels", "executor", "engine", "bindings"]
    wrong = []
    for path in sorted((ROOT / "csrc").rglob("*")):
        if path.suffix not in {".h", ".hpp", ".cpp"}:
            continue
        part = path.relative_to(ROOT / "csrc").parts[0]
        for include in includes_of(path):
            target = include.split("/")[0]
            if target in order and order.index(target) > order.index(part):
                wrong.append(f"{path.relative_to(ROOT)} includes {include}")
    assert not wrong, "\n".join(wrong)


def test_the_core_includes_no_torch_and_no_cuda_header() -> None:
    banned = ("torch/", "ATen/", "c10/", "cuda_runtime", "cuda.h")
    sources = [p for p in (ROOT / "csrc").rglob("*") if p.suffix in {".h", ".hpp", ".cpp"}]
    wrong = [str(p) for p in sources if any(f"#include <{b}" in p.read_text() or f'#include "{b}' in p.read_text() for b in banned)]
    assert not wrong, wrong
