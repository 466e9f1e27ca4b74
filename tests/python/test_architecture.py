# SPDX-License-Identifier: Apache-2.0
"""Rules of the house that a machine can check: who may include or import whom, and whole ops."""

from __future__ import annotations

import ast
import importlib
import inspect
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "python" / "fastfisher"
SOURCES = {".hpp", ".cpp", ".cu", ".cuh", ".h"}

STANDARD = r"<[a-z_]+>"
PUBLIC = r'["<]fastfisher/[a-z_]+\.hpp[">]'
SYSTEM = r"<(cpuid|dlfcn|immintrin|pthread|sched|sys/mman|unistd)\.h>"
BLAS = r'[<"](scipy_)?(cblas|lapacke?|openblas_config)\.h[>"]'
THREADS = r"<(thread|condition_variable|pthread\.h|omp\.h)>"
CUDA = r"<(cuda|cublas|cusolver|cub/|cooperative_groups|mma).*>"
PYTHON = r'<(pybind11/.*|Python\.h)>|["<]dlpack(/dlpack)?\.h[">]'

# room -> what its files may include besides the room's own headers; anything else is an error.
ROOMS = {
    "cpp/include/fastfisher": [STANDARD, PUBLIC],
    "cpp/src/core": [STANDARD, PUBLIC],
    "cpp/src/cpu": [STANDARD, PUBLIC, SYSTEM, BLAS],
    "cuda/src": [STANDARD, PUBLIC, CUDA, r"<dlfcn\.h>"],
    "python/bindings": [STANDARD, PUBLIC, PYTHON],
}
# Within a room, headers that only some files may name: pattern -> stems of those files.
DOORS = {
    "cpp/src/cpu": {BLAS: {"blas"}, THREADS: {"parallel"}},
    "cpp/src/core": {THREADS: set()},
    "python/bindings": {THREADS: set(), r'["<]dlpack.*[">]': {"bridge"}},
}

# module -> files and folders of the package that may name it.
IMPORTS = {
    "fastfisher._core": {"_native.py"},
    "torch": {"_arrays.py", "_device_array.py", "capture", "optim", "augment/_training.py"},
    "cupy": {"_arrays.py"},
    "cupyx": {"_arrays.py"},
    "jax": {"_arrays.py"},
}
# Of these, only inside functions: importing the package must not import them.
LAZY = {"torch", "cupy", "cupyx", "jax"}
# Rooms that are themselves imported inside functions only: they may name a framework at their top.
LATE = {"capture", "optim"}
# folder or file -> modules of ours that it must not import
FORBIDDEN = {
    "reference": {"fastfisher"},
    "structures": {"fastfisher.capture"},
    "factors.py": {"fastfisher.structures", "fastfisher.capture"},
    "_layer.py": {"fastfisher.structures", "fastfisher.capture"},
    "_jacobian.py": {"fastfisher.capture"},
    "capture": {"fastfisher.structures", "fastfisher._native"},
    "theory": {f"fastfisher.{room}" for room in ("models", "diagnostics", "capture", "_native")},
}


def includes(path: Path) -> list[str]:
    return re.findall(r'^\s*#\s*include\s*(<[^>]+>|"[^"]+")', path.read_text(), flags=re.MULTILINE)


def sources(room: str) -> list[Path]:
    return sorted(p for p in (ROOT / room).rglob("*") if p.suffix in SOURCES)


@pytest.mark.parametrize("room", ROOMS)
def test_includes_stay_in_their_room(room: str) -> None:
    files = sources(room)
    assert files, f"{room} holds no source"
    own = {p.relative_to(ROOT / room).as_posix() for p in files}
    strangers = [
        f"{path.relative_to(ROOT)} includes {name}"
        for path in files
        for name in includes(path)
        if not (name[0] == '"' and name[1:-1] in own)
        and not any(re.fullmatch(allowed, name) for allowed in ROOMS[room])
    ]
    assert not strangers


@pytest.mark.parametrize("room", DOORS)
def test_guarded_headers_have_one_door(room: str) -> None:
    around = [
        f"{path.relative_to(ROOT)} includes {name}; only {sorted(stems) or 'no file here'} may"
        for pattern, stems in DOORS[room].items()
        for path in sources(room)
        for name in includes(path)
        if re.fullmatch(pattern, name) and path.stem not in stems
    ]
    assert not around


def imports(path: Path) -> Iterator[tuple[str, bool]]:
    """Modules that a file imports, absolute, each with whether that happens at module level."""
    here = ("fastfisher", *path.relative_to(PACKAGE).parent.parts)

    def visit(node: ast.AST, top: bool) -> Iterator[tuple[str, bool]]:
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            return  # for the type checker only: never runs
        if isinstance(node, ast.Import):
            yield from ((alias.name, top) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = here[: len(here) - node.level + 1] if node.level else ()
            module = ".".join((*base, *([node.module] if node.module else [])))
            yield module, top
            yield from ((f"{module}.{alias.name}", top) for alias in node.names)
        elif isinstance(node, ast.Call) and node.args:
            called = ast.unparse(node.func).rpartition(".")[2]
            name = node.args[0]
            if called in {"import_module", "__import__"} and isinstance(name, ast.Constant):
                yield str(name.value), top
        inside = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        for child in ast.iter_child_nodes(node):
            yield from visit(child, top and not inside)

    yield from visit(ast.parse(path.read_text()), top=True)


def within(name: str, module: str) -> bool:
    return name == module or name.startswith(module + ".")


@pytest.mark.parametrize("module", IMPORTS)
def test_frameworks_are_named_in_their_rooms_only(module: str) -> None:
    wrong = []
    for path in sorted(PACKAGE.rglob("*.py")):
        relative = path.relative_to(PACKAGE)
        for name, top in imports(path):
            if not within(name, module):
                continue
            if IMPORTS[module].isdisjoint({relative.parts[0], relative.as_posix()}):
                wrong.append(f"{relative} imports {name}")
            elif top and module in LAZY and relative.parts[0] not in LATE:
                wrong.append(
                    f"{relative} imports {name} at module level; import it where it is used"
                )
    assert not wrong


@pytest.mark.parametrize("room", sorted(LATE))
def test_late_rooms_are_imported_inside_functions(room: str) -> None:
    assert not [
        f"{path.relative_to(PACKAGE)} imports {name} at module level"
        for path in sorted(PACKAGE.rglob("*.py"))
        if path.relative_to(PACKAGE).parts[0] not in LATE
        for name, top in imports(path)
        if top and within(name, f"fastfisher.{room}")
    ]


@pytest.mark.parametrize("room", FORBIDDEN)
def test_dependencies_point_one_way(room: str) -> None:
    start = PACKAGE / room
    files = [start] if start.is_file() else sorted(start.rglob("*.py"))
    assert not [
        f"{path.relative_to(PACKAGE)} imports {name}"
        for path in files
        for name, _ in imports(path)
        for module in FORBIDDEN[room]
        # A room may import itself.
        if within(name, module) and not within(name, f"fastfisher.{start.stem}")
    ]


def test_import_pulls_in_no_optional_package() -> None:
    optional = ["torch", "cupy", "jax", "scipy", "matplotlib", "rich", "sklearn", "jinja2"]
    code = f"import sys, fastfisher; print('found', *(m for m in {optional} if m in sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    # The last line: an editable installation reports its rebuild first.
    assert done.stdout.splitlines()[-1] == "found"


# Ops: one name everywhere ----------------------------------------


def without_comments(text: str) -> str:
    return re.sub(r"//[^\n]*|/\*.*?\*/", "", text, flags=re.DOTALL)


def declared_ops() -> list[str]:
    """Functions of ops.hpp whose first parameter is a Context."""
    header = ROOT / "cpp/include/fastfisher/ops.hpp"
    return re.findall(r"\b(\w+)\s*\(\s*const Context&", without_comments(header.read_text()))


def mentions(op: str, folders: list[str], suffixes: set[str]) -> bool:
    return any(
        re.search(rf"\b{op}\b", path.read_text())
        for folder in folders
        for path in sorted((ROOT / folder).rglob("*"))
        if path.suffix in suffixes and path != Path(__file__)
    )


def defines(op: str, folder: str) -> bool:
    body = rf"\b{op}\s*\(\s*const Context&[^;{{]*\{{"
    return any(re.search(body, without_comments(p.read_text())) for p in sources(folder))


def stub_functions() -> dict[str, list[str]]:
    tree = ast.parse((PACKAGE / "_core.pyi").read_text())
    return {
        # pybind11 calls an argument that cannot be given by name arg0, arg1, ...
        node.name: [f"arg{i}" for i in range(len(node.args.posonlyargs))]
        + [argument.arg for argument in (*node.args.args, *node.args.kwonlyargs)]
        for node in tree.body
        if isinstance(node, ast.FunctionDef)
    }


def reference_functions() -> set[str]:
    return {
        node.name
        for path in (PACKAGE / "reference").rglob("*.py")
        for node in ast.parse(path.read_text()).body
        if isinstance(node, ast.FunctionDef)
    }


def test_ops_are_declared() -> None:
    assert "gram" in declared_ops()


@pytest.mark.parametrize("op", declared_ops())
def test_op_is_whole(op: str) -> None:
    backend = (ROOT / "cpp/include/fastfisher/backend.hpp").read_text()
    missing = []
    if not re.search(rf"\b{op} = nullptr;", backend):
        missing.append("entry in backend.hpp")
    if not defines(op, "cpp/src/cpu"):
        missing.append("body in cpp/src/cpu")
    if op not in stub_functions():
        missing.append("line in _core.pyi")
    if not mentions(op, ["python/bindings"], {".cpp"}):
        missing.append("binding")
    if not re.search(rf"\b{op}\b", (PACKAGE / "_native.py").read_text()):
        missing.append("line in _native.py")
    # A query of a size computes nothing: it is tested and timed with its op.
    if not op.endswith(("_workspace", "_size")):
        if op not in reference_functions():
            missing.append("function in reference/")
        if not mentions(op, ["tests/python", "tests/cpp"], {".py", ".cpp"}):
            missing.append("test")
        if not mentions(op, ["bench/cpp", "bench/python"], {".py", ".cpp"}):
            missing.append("bench")
    assert not missing, f"{op} lacks: {', '.join(missing)}"


def test_stub_equals_module() -> None:
    # Not an import statement: only _native.py imports this module.
    core = importlib.import_module("fastfisher._core")
    built = {name for name, value in vars(core).items() if inspect.isbuiltin(value)}
    stub = stub_functions()
    assert {n for n in built if not n.startswith("_")} == {n for n in stub if not n.startswith("_")}
    for name, arguments in stub.items():
        # The first line of pybind11's docstring is the signature: name(a: object, ...) -> None
        signature = (getattr(core, name).__doc__ or "").partition("\n")[0]
        inner = signature.partition("(")[2].rpartition(") ->")[0]
        documented = re.findall(r"(\w+): ", inner)
        assert documented == arguments, f"{name}: the module says {signature}"
