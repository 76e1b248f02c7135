"""The order of the house: a module imports only what stands above it, and nothing goes round in a circle."""

from __future__ import annotations

import ast
import subprocess
import sys
from graphlib import TopologicalSorter
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
# design.md; modules of one rank may import each other as long as no circle arises. `launching` is what launch/ shares.
ORDER = (
    ("types", "files", "progress", "process", "hosts", "urls"),
    ("data_config",),
    ("config", "finetune_config"),
    ("config_files",),
    ("ds_schema", "ds_check", "ds_settings"),
    ("data",),
    ("model",),
    ("interop",),
    ("objectives",),
    ("engine",),
    ("evaluation",),
    ("search",),
    ("bench",),
    ("launching",),
    ("supervise",),
)
# Programs (`python -m ...`) stand on top of everything, wherever their file lies; no module imports them.
PROGRAMS = {"simvtp_ds.interop.golden", "simvtp_ds.evaluation.ablation"}
RANK = {name: rank for rank, names in enumerate(ORDER) for name in names}
PACKAGE = "simvtp_ds"


def modules() -> dict[str, Path]:
    """Dotted name to file, of every module of the package."""
    found = {}
    for path in sorted((ROOT / PACKAGE).rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imported(source: str, known: set[str], module: str, is_package: bool) -> set[str]:
    """Modules of the package that a file imports, also inside functions and under TYPE_CHECKING, and relative ones."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            parts = module.split(".")
            base = parts[: len(parts) - node.level + is_package] if node.level else []
            origin = ".".join([*base, *([node.module] if node.module else [])])
            names |= {origin, *(f"{origin}.{alias.name}" for alias in node.names)}
    # `from a.b import f` names a.b and a.b.f: only real modules count.
    return {name for name in names & known if name not in (module, PACKAGE)}


def graph() -> dict[str, set[str]]:
    files = modules()
    return {
        name: imported(path.read_text(encoding="utf-8"), set(files), name, path.name == "__init__.py")
        for name, path in files.items()
    }


def rank(module: str) -> int:
    return RANK[module.split(".")[1]]


def test_every_module_has_a_place_in_the_order():
    strangers = [name for name in modules() if name != PACKAGE and name.split(".")[1] not in RANK]
    assert strangers == []
    assert len(modules()) > 10


def test_a_module_imports_only_what_stands_above_it():
    wrong = [
        f"{name} imports {other}"
        for name, others in graph().items()
        if name != PACKAGE
        for other in others
        if rank(other) > rank(name) and name not in PROGRAMS
    ]
    assert wrong == []


def test_programs_are_imported_by_no_module():
    assert set(modules()) >= PROGRAMS
    assert [name for name, others in graph().items() if others & PROGRAMS] == []


def test_imports_do_not_go_round_in_a_circle():
    edges = {name: {other for other in others if not name.startswith(f"{other}.")} for name, others in graph().items()}
    list(TopologicalSorter(edges).static_order())  # a CycleError names the circle


def test_the_package_itself_imports_nothing_until_a_model_is_loaded():
    code = "import sys; before = set(sys.modules); import simvtp_ds; print(*(set(sys.modules) - before))"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert {name for name in run.stdout.split() if name.split(".")[0] not in sys.stdlib_module_names} == {PACKAGE}


def test_launch_scripts_are_imported_by_no_module():
    wrong = []
    for name, path in modules().items():
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            origin = node.module if isinstance(node, ast.ImportFrom) else None
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else [origin or ""]
            wrong += [f"{name} imports {other}" for other in names if other.split(".")[0] in ("launch", "tests")]
    assert wrong == []


def test_all_kinds_of_imports_are_seen():
    known = {"simvtp_ds", "simvtp_ds.types", "simvtp_ds.data", "simvtp_ds.data.a", "simvtp_ds.data.b"}
    for line in ("from simvtp_ds.data.a import f", "import simvtp_ds.data.a", "from simvtp_ds.data import a"):
        assert "simvtp_ds.data.a" in imported(line, known, "simvtp_ds.data.b", False), line
        assert "simvtp_ds.data.a" in imported(f"def g():\n    {line}", known, "simvtp_ds.data.b", False), line
    assert "simvtp_ds.data.a" in imported("from . import a", known, "simvtp_ds.data.b", False)
    assert "simvtp_ds.data.a" in imported("from .a import f", known, "simvtp_ds.data", True)
    assert "simvtp_ds.types" in imported("from ..types import Batch", known, "simvtp_ds.data.b", False)
    assert imported("import numpy, os.path", known, "simvtp_ds.data.b", False) == set()


def test_decoder_workers_start_without_torch():
    code = "import sys, simvtp_ds.data.worker; print('torch' in sys.modules, 'deepspeed' in sys.modules)"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert run.returncode == 0, run.stderr
    assert run.stdout == "False False\n"
