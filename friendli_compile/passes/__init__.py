"""The passes, in the order in which they run. Each is one file with one function `run(graph) -> graph` and an example in its docstring.

`run_pipeline` verifies the graph after every pass; with FMO_DEBUG=3 it prints the graph after every pass that changed it.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable

from ..ir.graph import Graph, GraphError
from ..ir.text import print_graph
from ..ir.verify import verify
from . import (
    canonical_linear,
    cse,
    dead_code,
    fold_constants,
    fuse_act_mul,
    fuse_activations,
    fuse_add_norm,
    fuse_layer_norm,
    fuse_pointwise,
    fuse_rms_norm,
    fuse_rope,
    merge_head_norms,
    merge_linears,
    select_logit_rows,
    share_kv_heads,
    simplify,
    token_major,
)

Pass = Callable[[Graph], Graph]

PIPELINE: tuple[tuple[str, Pass], ...] = (
    ("dead_code", dead_code.run),
    ("token_major", token_major.run),
    ("simplify", simplify.run),
    ("fold_constants", fold_constants.run),
    ("cse", cse.run),
    ("simplify", simplify.run),
    ("canonical_linear", canonical_linear.run),
    ("fuse_activations", fuse_activations.run),
    ("fuse_rms_norm", fuse_rms_norm.run),
    ("fuse_layer_norm", fuse_layer_norm.run),
    ("merge_head_norms", merge_head_norms.run),
    ("fuse_rope", fuse_rope.run),
    ("share_kv_heads", share_kv_heads.run),
    ("cse", cse.run),
    ("select_logit_rows", select_logit_rows.run),
    ("merge_linears", merge_linears.run),
    ("fuse_act_mul", fuse_act_mul.run),
    ("fuse_add_norm", fuse_add_norm.run),
    ("fold_constants", fold_constants.run),
    ("simplify", simplify.run),
    ("cse", cse.run),
    ("fuse_pointwise", fuse_pointwise.run),
)


def run_pipeline(graph: Graph, dump: Callable[[str, Graph], None] | None = None) -> Graph:
    """All passes. `dump(name, graph)` is called after each, and once before with the name "as traced"."""
    is_printing = os.environ.get("FMO_DEBUG", "") == "3"
    _report("as traced", graph, dump, is_printing, 0.0)
    is_token_major = False
    for name, run in PIPELINE:
        start = time.perf_counter()
        graph = run(graph)
        is_token_major |= name == "token_major"
        try:
            verify(graph, is_token_major)
        except GraphError as error:
            raise GraphError(f"the pass {name} made an invalid graph: {error.what}", error.where, "report this as a bug") from None
        _report(name, graph, dump, is_printing, time.perf_counter() - start)
    return graph


def _report(name: str, graph: Graph, dump: Callable[[str, Graph], None] | None, is_printing: bool, seconds: float) -> None:
    if dump is not None:
        dump(name, graph)
    if is_printing:
        print(f"# --- {name}: {len(graph.nodes)} nodes, {seconds * 1e3:.1f} ms", file=sys.stderr)
        print(print_graph(graph, sources=True, elide_constants=True), file=sys.stderr)
