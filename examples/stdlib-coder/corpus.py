"""The training text of stdlib-coder: the source of the Python standard library of the interpreter that runs this.

Input: `sysconfig.get_path("stdlib")`. Output: files split into train and held-out (by file, seeded), and three kinds of
training documents cut from the train files only:

    file     a whole source file
    snippet  one function, class or method by itself, dedented: teaches where a definition ends
    chat     a user turn made from a signature or a docstring, and an assistant turn with the code that follows

Left out: the test suites, IDLE, and generated tables, none of which reads like code that one would want to see continued.
"""

import ast
import hashlib
import random
import sysconfig
import textwrap
from dataclasses import dataclass
from pathlib import Path

EXCLUDED_DIRS = {"site-packages", "test", "tests", "idle_test", "idlelib", "encodings", "pydoc_data", "__phello__"}
EXCLUDED_FILES = {"html/entities.py", "this.py", "sre_constants.py"}
HELD_OUT_SHARE = 0.04  # of the files
EXCERPT_PATH = "dbm/dumb.py"  # always held out: held_out_excerpt.txt is its beginning
MIN_SNIPPET_CHARS = 60
MAX_SNIPPET_CHARS = 4000
CHAT_SHARE = 0.35  # of the snippets that also become a chat document
MAX_CHAT_CHARS = 1200  # so that a whole exchange fits the context


@dataclass(frozen=True)
class SourceFile:
    """One file of the standard library: its path relative to the library's root, and its text."""

    path: str
    text: str


@dataclass(frozen=True)
class ChatDocument:
    """One exchange; the caller adds the chat template's special tokens."""

    user: str
    assistant: str


@dataclass(frozen=True)
class Corpus:
    """What is trained on and what is held out."""

    train_files: list[SourceFile]
    held_out_files: list[SourceFile]
    snippets: list[str]
    chats: list[ChatDocument]

    def sha256(self) -> str:
        """Hash of all text, so that a report names exactly what it was measured on."""
        digest = hashlib.sha256()
        for file in [*self.train_files, *self.held_out_files]:
            digest.update(f"{file.path}\0{file.text}\0".encode())
        return digest.hexdigest()


def build_corpus(seed: int) -> Corpus:
    """Reads the library and cuts it into documents; the same interpreter and seed give the same corpus."""
    files = read_stdlib()
    rng = random.Random(seed)
    held_out = set(rng.sample([file.path for file in files], round(len(files) * HELD_OUT_SHARE))) | {EXCERPT_PATH}
    train_files = [file for file in files if file.path not in held_out]
    snippets = sorted({snippet for file in train_files for snippet in snippets_of(file.text)})
    chats = [chat for snippet in snippets if rng.random() < CHAT_SHARE for chat in chats_of(snippet, rng)]
    return Corpus(train_files, [file for file in files if file.path in held_out], snippets, chats)


def read_stdlib() -> list[SourceFile]:
    """All files that are trained on or held out, in the order of their path."""
    root = Path(sysconfig.get_path("stdlib"))
    files = []
    for path in sorted(root.rglob("*.py")):
        relative = path.relative_to(root)
        if EXCLUDED_DIRS.intersection(relative.parts) or relative.as_posix() in EXCLUDED_FILES or relative.parts[0].startswith("config-"):
            continue
        text = path.read_text(encoding="utf-8", errors="replace").expandtabs(8).replace("\f", "")
        if text.strip():
            files.append(SourceFile(relative.as_posix(), text))
    return files


def snippets_of(text: str) -> list[str]:
    """The source of every function, class and method of a file, dedented, ending in one newline."""
    try:
        tree = ast.parse(text)
    except SyntaxError:  # lib2to3 ships templates for Python 2
        return []
    lines = text.splitlines(keepends=True)
    snippets = []
    for node in ast.walk(tree):
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            continue
        first_line = min([node.lineno, *(decorator.lineno for decorator in node.decorator_list)])
        source = textwrap.dedent("".join(lines[first_line - 1 : node.end_lineno])).rstrip() + "\n"
        if MIN_SNIPPET_CHARS <= len(source) <= MAX_SNIPPET_CHARS and parses(source):
            snippets.append(source)
    return snippets


def parses(source: str) -> bool:
    """Whether dedenting left valid Python: text at column 0 inside of a string or a comment can spoil it."""
    try:
        ast.parse(source)
    except SyntaxError:
        return False
    return True


def chats_of(snippet: str, rng: random.Random) -> list[ChatDocument]:
    """A request to complete the snippet, or to write it from the first line of its docstring; none where it is too long."""
    if len(snippet) > MAX_CHAT_CHARS:
        return []
    definition = ast.parse(snippet).body[0]
    body = definition.body
    docstring = ast.get_docstring(definition)
    if docstring and len(body) > 1 and rng.random() < 0.5:
        kind = "class" if isinstance(definition, ast.ClassDef) else "function"
        first_line = docstring.strip().splitlines()[0]
        return [ChatDocument(f"Write a Python {kind}: {first_line}", f"```python\n{snippet}```")]
    lines = snippet.splitlines(keepends=True)
    num_prefix_lines = (body[1].lineno if docstring and len(body) > 1 else body[0].lineno) - 1
    prefix, continuation = "".join(lines[:num_prefix_lines]), "".join(lines[num_prefix_lines:])
    if not prefix.strip() or not continuation.strip():
        return []
    return [ChatDocument(f"Complete this code:\n```python\n{prefix}```", continuation)]
