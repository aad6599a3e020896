"""Which room imports which, from the source: `python tests/room_imports.py` prints the table of the rooms."""

from __future__ import annotations

import ast
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

REPOSITORY = Path(__file__).parents[1]
ROOTS = ("batch", "graphs", "export", "runtime")


def room_of(module: str) -> str:
    """The room of a module by its dotted path below the package: its folder."""
    path = REPOSITORY.joinpath(*module.split("."))
    return module if path.is_dir() else module.rpartition(".")[0]


def imports(path: Path) -> Iterator[str]:
    """The modules of this package that a file imports, at its top and within functions."""
    package = path.relative_to(REPOSITORY).parent.parts
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.level:
            base = ".".join(package[: len(package) - node.level + 1])
            module = ".".join(part for part in (base, node.module) if part)
            for alias in node.names:
                name = f"{module}.{alias.name}".lstrip(".")
                path = REPOSITORY.joinpath(*name.split("."))
                yield name if path.is_dir() or path.with_suffix(".py").exists() else module


def arrows() -> dict[str, Counter[str]]:
    """For each room, how many imports of each other room it has."""
    table: dict[str, Counter[str]] = {}
    for root in ROOTS:
        for path in sorted((REPOSITORY / root).rglob("*.py")):
            room = ".".join(path.relative_to(REPOSITORY).parent.parts)
            targets = table.setdefault(room, Counter())
            targets.update(target for target in map(room_of, imports(path)) if target != room)
    return table


if __name__ == "__main__":
    for room, targets in arrows().items():
        listed = ", ".join(f"{target} ({count})" for target, count in sorted(targets.items()))
        print(f"{room:22} -> {listed}")
