"""Which code made a figure: a hash of the files that can change one, without comments, docstrings and layout."""

from __future__ import annotations

import ast
import hashlib
import subprocess
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[1]
MEASURED = ("strategies", "models", "client_app", "hyperlora")
MEASURED_FILES = tuple(
    f"benchmarks/{name}.py"
    for name in ("run_job", "local_grid", "centralised", "adapting", "attacks", "liars", "robust_rules")
)
APART = ("hyperlora/cli", "hyperlora/reporting", "hyperlora/storage")


@cache
def product_fingerprint(root: Path = ROOT) -> str:
    """Return twelve hexadecimal digits that change with the product code; the same in every process of a suite."""
    digest = hashlib.sha256()
    for name in measured_files(root):
        digest.update(f"{name}\0{meaning(root / name)}\0".encode())
    return digest.hexdigest()[:12]


def product_is_dirty(root: Path = ROOT) -> bool:
    """Tell whether a file that counts differs from the commit; False where there is no git."""
    places = [*MEASURED, *MEASURED_FILES, *(f":!{place}" for place in APART)]
    git = ["git", "-C", str(root), "status", "--porcelain", "--", *places]
    return bool(subprocess.run(git, capture_output=True, text=True, check=False).stdout.strip())


def measured_files(root: Path) -> list[str]:
    """Return the files that count, as paths below ``root``, sorted."""
    found = [path for place in MEASURED for path in (root / place).rglob("*") if path.is_file()]
    names = {path.relative_to(root).as_posix() for path in found if "__pycache__" not in path.parts}
    names = {name for name in names if not name.startswith(tuple(f"{place}/" for place in APART))}
    kept = {name for name in names if not name.endswith((".md", ".pyc"))}
    return sorted(kept | {name for name in MEASURED_FILES if (root / name).exists()})


def meaning(path: Path) -> str:
    """Return what a file says: Python without comments, docstrings and layout; of another file the hash."""
    if path.suffix != ".py":
        return hashlib.sha256(path.read_bytes()).hexdigest()
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            node.body = [one for one in node.body if not _is_text(one)] or [ast.Pass()]
    return ast.unparse(tree)


def _is_text(node: ast.stmt) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)
