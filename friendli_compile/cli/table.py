"""Text tables and sizes for the reports of the verbs."""

from __future__ import annotations

from collections.abc import Sequence


def table(rows: Sequence[Sequence[object]], header: Sequence[str]) -> str:
    """Aligned columns: the first left, numbers right."""
    cells = [list(header), *([str(cell) for cell in row] for row in rows)]
    widths = [max(len(row[i]) for row in cells) for i in range(len(header))]
    is_text = [any(not row[i][:1].isdigit() for row in cells[1:]) for i in range(len(header))]
    lines = []
    for row in cells:
        padded = [cell.ljust(width) if text else cell.rjust(width) for cell, width, text in zip(row, widths, is_text, strict=True)]
        lines.append("  ".join(padded).rstrip())
    return "\n".join(lines)


def size(num_bytes: float) -> str:
    """Bytes for people: `17.4 MB` (decimal units)."""
    for unit in ("B", "kB", "MB", "GB"):
        if num_bytes < 1000:
            return f"{num_bytes:.0f} {unit}" if unit == "B" else f"{num_bytes:.1f} {unit}"
        num_bytes /= 1000
    return f"{num_bytes:.1f} TB"
