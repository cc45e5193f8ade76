"""Shows the phases of a compilation on stderr, each with its time.

    with progress.phase("pack") as phase:
        phase.update(0.4, "layers.3 …")      # fraction done, what is running

On a terminal: a bar with the time left while a phase runs (colours as NO_COLOR says), then one aligned line. Not on a terminal: nothing,
unless FMO_DEBUG ≥ 1 asks for the lines. Notes are always shown: they say what the user did not ask for.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType, TracebackType

_NAME_WIDTH = 12


def debug_level() -> int:
    """FMO_DEBUG: 1 phases and times, 2 kernel calls, 3 IR after each pass."""
    text = os.environ.get("FMO_DEBUG", "")
    return int(text) if text.isdigit() else int(bool(text))


class Phase:
    """A running phase; `detail` ends up in its line."""

    def __init__(self, on_update: Callable[[float, str], None] | None) -> None:
        self.detail = ""
        self._on_update = on_update

    def update(self, fraction: float, what: str = "") -> None:
        """`fraction` done, 0 … 1; shown at most a few times a second."""
        if self._on_update is not None:
            self._on_update(fraction, what)


class Progress:
    """Where phases report. `seconds` is what each took."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._is_interrupted = False
        self._has_bar = sys.stderr.isatty()
        self._has_lines = sys.stderr.isatty() or debug_level() >= 1

    def interrupt(self, _signal_number: int, _frame: FrameType | None) -> None:
        """A signal handler. Python loses what is raised inside of a destructor or a callback, so the next phase raises again."""
        self._is_interrupted = True
        raise KeyboardInterrupt

    @contextmanager
    def phase(self, name: str) -> Iterator[Phase]:
        if self._is_interrupted:
            raise KeyboardInterrupt
        started = time.perf_counter()
        with _Bar(name) if self._has_bar else _NoBar() as on_update:
            phase = Phase(on_update)
            yield phase
        self.seconds[name] = time.perf_counter() - started
        if self._has_lines:
            print(f"{name:<{_NAME_WIDTH}}{self.seconds[name]:8.1f} s  {phase.detail}".rstrip(), file=sys.stderr)

    def note(self, text: str) -> None:
        """Something that the user should know."""
        print(f"note: {text}", file=sys.stderr)

    def warn(self, text: str) -> None:
        """Something that the user should not overlook."""
        print(f"WARNING: {text}", file=sys.stderr)


class _NoBar:
    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        return None


class _Bar:
    """A rich bar that vanishes when the phase ends."""

    def __init__(self, name: str) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, TaskProgressColumn, TextColumn, TimeRemainingColumn
        from rich.progress import Progress as RichProgress

        columns = (
            TextColumn(f"{name:<{_NAME_WIDTH}}"),
            BarColumn(),
            TaskProgressColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.description}"),
        )
        self._bar = RichProgress(*columns, console=Console(stderr=True), transient=True)
        self._task = self._bar.add_task("", total=None)

    def __enter__(self) -> Callable[[float, str], None]:
        self._bar.start()
        return lambda fraction, what: self._bar.update(self._task, total=1.0, completed=fraction, description=what)

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._bar.stop()
