"""What can be mutated: universalmutator's rules on each line, without what no test could notice."""

from __future__ import annotations

import ast
import contextlib
import io
import random
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

C = ["universal.rules", "c_like.rules", "c.rules"]
RULES = {".py": ["universal.rules", "python.rules"], ".c": C, ".h": C}
# Not ours to get wrong: CO-RE finds the offsets whatever this file says of them.
LEFT_OUT = {"bpf/vmlinux.h"}
PROSE = re.compile(r"[A-Za-z]\w+,? [a-z]\w*")


@dataclass(frozen=True)
class Mutant:
    path: str
    line: int
    source: str  # the whole file


@dataclass(frozen=True)
class Place:
    """A line, and what the rules make of it. The sample is one of places, so that a line that many
    rules match counts no more than another."""

    path: str
    line: int
    changed: tuple[str, ...]

    def mutants(self, source: str, seed: str) -> Iterator[Mutant]:
        """In an order that the seed decides."""
        dice = random.Random(f"{seed} {self.path} {self.line}")
        lines = source.splitlines(keepends=True)
        for change in dice.sample(self.changed, len(self.changed)):
            lines[self.line - 1] = change
            yield Mutant(self.path, self.line, "".join(lines))


def sources(root: Path, only: str | None) -> list[str]:
    """The files to mutate, as paths below root."""
    patterns = {"src": "src/tcpcore/**/*.py", "bpf": "bpf/**/*.[ch]"}
    wanted = [patterns[only]] if only else patterns.values()
    found = {x.relative_to(root).as_posix() for pattern in wanted for x in root.glob(pattern)}
    return sorted(found - LEFT_OUT)


def places(root: Path, paths: Iterable[str], seed: str) -> list[Place]:
    """Those of all files, in an order that the seed decides."""
    found = [place for path in paths for place in _places(root, path)]
    random.Random(seed).shuffle(found)
    return found


def _places(root: Path, path: str) -> Iterator[Place]:
    from universalmutator.mutator import mutants_regexp  # here alone: few have it installed

    lines = (root / path).read_text(encoding="utf-8").splitlines(keepends=True)
    with contextlib.redirect_stdout(io.StringIO()):  # it tells which rules it takes
        made = mutants_regexp(lines, RULES[Path(path).suffix], ignorePatterns=[])
    by_line: dict[int, list[str]] = {}
    for line, change, *_ in made:
        by_line.setdefault(line, []).append(change)
    for line, changes in by_line.items():
        yield Place(path, line, tuple(changes))


def essence(source: str) -> str | None:
    """What a Python source does, without what it only says: comments, docstrings, messages and
    help texts, type hints. None if it does not compile."""
    try:
        compile(source, "mutant", "exec", dont_inherit=True)
    except (SyntaxError, ValueError):
        return None
    return ast.dump(_Essence().visit(ast.parse(source)))


class _Essence(ast.NodeTransformer):
    """The fields of a class keep their hints: events are decoded by them. So does a parameter whose
    hint is made by a call: that is an option of the command line."""

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.AST:
        node.returns = None
        for x in ast.walk(node):
            if isinstance(x, ast.AnnAssign):
                x.annotation = ast.Constant(None)
            if isinstance(x, ast.arg) and x.annotation and not _has_call(x.annotation):
                x.annotation = None
        return self.generic_visit(node)

    def visit_Assign(self, node: ast.Assign) -> ast.AST | None:
        """Without __all__, and the alias of a type, as in Texts = list[str]."""
        target = node.targets[0]
        if isinstance(target, ast.Name) and target.id == "__all__":
            return None
        is_alias = isinstance(target, ast.Name) and re.match("_?[A-Z][a-z]", target.id)
        if is_alias and isinstance(node.value, ast.Subscript | ast.BinOp):
            return None
        return self.generic_visit(node)

    def visit_Call(self, node: ast.Call) -> ast.AST:
        if isinstance(node.func, ast.Name) and node.func.id == "cast":
            node.args[0] = ast.Constant(None)
        return self.generic_visit(node)

    def visit_Expr(self, node: ast.Expr) -> ast.AST | None:
        """Without docstrings."""
        return None if isinstance(node.value, ast.Constant) else self.generic_visit(node)

    def visit_ImportFrom(self, node: ast.ImportFrom) -> ast.AST | None:
        """Without what hints alone need; where more needs it, the import fails anyway."""
        node.names.sort(key=lambda alias: alias.name)
        return None if node.module in ("__future__", "typing", "collections.abc") else node

    def visit_If(self, node: ast.If) -> ast.AST:
        """Without what stands behind its end."""
        node.body, node.orelse = _to_end(node.body), _to_end(node.orelse)
        return self.generic_visit(node)

    def visit_Pass(self, node: ast.Pass) -> None:
        """As little as a docstring, in whose place a mutant may have it."""

    def visit_Constant(self, node: ast.Constant) -> ast.AST:
        is_prose = isinstance(node.value, str) and PROSE.search(node.value)
        return ast.Constant("prose") if is_prose else node


def _to_end(block: list[ast.stmt]) -> list[ast.stmt]:
    ends = (ast.Raise, ast.Return, ast.Continue, ast.Break)
    return block[: next((i + 1 for i, x in enumerate(block) if isinstance(x, ends)), None)]


def _has_call(node: ast.AST) -> bool:
    return any(isinstance(x, ast.Call) for x in ast.walk(node))
