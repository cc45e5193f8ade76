"""Converts or measures in the environment of one peer; started by run.py.

python worker.py prepare ADAPTER MODEL_DIR PRECISION OUT
python worker.py measure ADAPTER PATH WORKLOAD_JSON        prints one JSON object as the last line
"""

import importlib
import json
import os
import sys
from pathlib import Path

from workload import Workload, measure


def main() -> None:
    verb, name, path, *rest = sys.argv[1:]
    adapter = importlib.import_module(f"adapters.{name}")
    if verb == "prepare":
        precision, out = rest
        adapter.prepare(Path(path), precision, Path(out))
        return
    fields = json.loads(rest[0])
    work = Workload(**fields | {"batches": tuple(fields["batches"])})
    print("\n" + json.dumps(measure(lambda: adapter.load(Path(path), work), work)), flush=True)
    os._exit(0)  # some engines crash or hang when they are taken down


if __name__ == "__main__":
    main()
