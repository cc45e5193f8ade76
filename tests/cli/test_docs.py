"""docs/cli.md is the help of every verb; FMO_BLESS=1 writes it anew."""

import os
import sys
from pathlib import Path

import click

from friendli_compile.cli import VERBS, fmo

PAGE = Path(__file__).parents[2] / "docs" / "cli.md"
HEAD = """# Command line

Answers go to stdout, progress and notes to stderr. Exit codes: 0 ok, 1 the user can mend it, 2 usage, 3 a bug of ours; more at the verbs.
`FMO_DEBUG=1` prints phases and times, `2` the kernel of every call, `3` the graph after each pass. `NO_COLOR` is respected.
This page is the output of `fmo VERB --help`, kept equal by a test.
"""


def rendered_page() -> str:
    parts = [HEAD]
    with click.Context(fmo, info_name="fmo", **fmo.context_settings) as root:
        for name in VERBS:
            command = fmo.get_command(root, name)  # type: ignore[attr-defined]
            with click.Context(command, info_name=name, parent=root, terminal_width=110, max_content_width=110) as context:
                help_text = "\n".join(line.rstrip() for line in command.get_help(context).splitlines())
            parts.append(f"## fmo {name}\n\n```text\n{help_text}\n```\n")
    return "\n".join(parts)


def test_the_page_of_the_command_line_is_the_help_of_every_verb() -> None:
    page = rendered_page()
    if os.environ.get("FMO_BLESS"):
        PAGE.write_text(page)
    assert page == PAGE.read_text(), f"run FMO_BLESS=1 {Path(sys.executable).name} -m pytest tests/cli/test_docs.py and read the difference"
