"""Check names and sentences against a word list: `python tools/words.py` prints each finding and exits with 1.

Names are the field's standard terms, and sentences are plain English: the lists below hold what was replaced, so that
it does not come back. Names are read from the syntax tree of `src`; sentences from its docstrings, comments and string
literals, and from the pages in `docs`, the README and the changelog.
"""

from __future__ import annotations

import ast
import re
import sys
import tokenize
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]

NAMES = {
    "about": "a noun, such as description",
    "agreed": "broadcast",
    "anew": "a noun or flag that says what happens, such as reset",
    "artefact": "checkpoint",
    "asked": "a noun, such as requested or query",
    "found": "the noun that says what it is, such as matches or result",
    "how": "pooling, kernel_options, or what it selects",
    "inner": "task_model",
    "lane": "expert",
    "lanes": "num_experts",
    "one": "the noun that says what it is",
    "own": "shard",
    "panel": "method_suite",
    "pieces": "chunks",
    "place": "path, position or checkpoint_dir",
    "places": "paths or positions",
    "remedy": "hint",
    "rejoined": "all_gather",
    "rival": "external_method",
    "silent": "dummy",
    "sure": "label_weight",
    "told": "a noun",
    "waited": "patience_count",
    "wanted": "outputs",
}
"""A banned name of a variable, argument, attribute, function or class, and what to use."""

SENTENCES = {
    r"\banew\b": "again",
    r"\bartefacts?\b": "checkpoint, file",
    r"\blabell(ed|ing|er)s?\b": "American spelling: labeled, labeling",
    r"\b(behaviour|colour|centre[ds]?|favour|(normal|standard|optim|initial|serial)is(e[ds]?|ing|ation|ers?)\w*)\b": (
        "American spelling"
    ),
    r"(?-i:\bis none\b)(?! of)": "does not exist, is missing, is None",
    r"(?<!there )\b(is|are) no [a-z]+\b(?! (longer|more))": "is not a …",
    r"\bwhoever\b": "a client, a caller",
    r"\bin vain\b": "without effect",
    r"\bhangs? on\b": "depends on",
    r"\bmend(s|ed|ing)?\b": "fix",
    r"\bfor the others' sake\b": "to keep the processes in step",
    r"\bfrom elsewhere\b": "from another …",
    r"\bmeanwhile\b": "in the meantime, while …",
    r"\bat hand\b": "available",
    r"\bgo(es)? on (where|with|from)\b": "continue",
    r"\bgone (on|over)\b": "continued, repeated",
    r"\b(one|two) an? (response|prompt|task|capability|expert|pair|line|row|group|sample|query|process|step)\b": "per",
    r"\bso many\b": "the number itself",
    r"\bwants? gradients\b": "is trainable",
    r"\bhas? come here\b": "reached this point",
    r"\bput right\b": "correct",
    r"\bis at work\b": "is running",
    r"\bof no kind\b": "unsupported",
    r"\bfit no memory\b": "do not fit in memory",
    r"\bnobody\b": "no client, no process",
    r"\btakes? note\b": "record",
    r"\bbe told\b": "be distinguished, be reported",
    r"\btold from\b": "distinguished from",
    r"\blies? (there|here|in|beside|under)\b": "is in",
    r"\bsees to it\b": "ensure",
    r"\bpassed over\b": "ignored, skipped",
    r"\blooked for\b": "searched",
}
"""A pattern that plain English does without, and what to write."""


def names(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """The names that a module binds: variables, arguments, attributes, functions and classes."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.lineno, node.id
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            yield node.lineno, node.attr
        elif isinstance(node, ast.arg):
            yield node.lineno, node.arg
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            yield node.lineno, node.name


def sentences(file: Path) -> Iterator[tuple[int, str]]:
    """The lines of a Python file's comments and strings, or all lines of a page outside its code blocks."""
    if file.suffix == ".py":
        with file.open("rb") as stream:
            for token in tokenize.tokenize(stream.readline):
                if token.type in (tokenize.COMMENT, tokenize.STRING, getattr(tokenize, "FSTRING_MIDDLE", -1)):
                    for offset, line in enumerate(token.string.splitlines()):
                        yield token.start[0] + offset, line
        return
    code = False
    for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), 1):
        code ^= line.lstrip().startswith("```")
        if not code:
            yield number, line


def findings() -> Iterator[str]:
    """One line for each banned name or sentence: file, line, what it is, what to write."""
    sources = sorted((ROOT / "src").rglob("*.py"))
    for file in sources:
        for line, name in names(ast.parse(file.read_text(encoding="utf-8"))):
            if hint := NAMES.get(name.strip("_").lower()):
                yield f"{file.relative_to(ROOT)}:{line}: name `{name}`: use {hint}"
    pages = [ROOT / "README.md", ROOT / "CHANGELOG.md", ROOT / "SECURITY.md", *sorted((ROOT / "docs").glob("*.md"))]
    templates = [f for f in (ROOT / "src").rglob("*") if f.suffix in (".html", ".js", ".yaml", ".j2")]
    for file in [*sources, *pages, *sorted(templates)]:
        for line, text in sentences(file):
            for pattern, hint in SENTENCES.items():
                if match := re.search(pattern, text, re.IGNORECASE):
                    yield f"{file.relative_to(ROOT)}:{line}: “{match[0]}”: write {hint}"


if __name__ == "__main__":
    lines = list(findings())
    print(*lines, sep="\n")
    print(f"{len(lines)} findings")
    sys.exit(bool(lines))
