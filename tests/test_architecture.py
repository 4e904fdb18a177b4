"""Which file may import which: arrows run downward only."""

from __future__ import annotations

import ast
import importlib
import inspect
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[1]
PACKAGES = ("bilevel", "structured")
BRIDGES = ("interop.py", "operators.py")  # to_scipy and from_scipy

# From the bottom up: a module imports from its own layer and from those before it.
LAYERS = (
    ("errors",),
    (
        "_tree",
        "_guard",
        "_transforms",
        "_unrecorded",
        "_autodiff",
        "_checks",
        "_closures",
        "_prediction",
        "_resume",
        "solution",
    ),
    ("operators", "matrices", "interop"),
    ("_spectrum",),
    ("preconditioners",),
    ("solvers",),
    ("_system",),
    ("linear",),
    ("products",),
    ("curvature", "_point"),
    ("report",),
    ("_probe", "_verdict"),
    ("_compiling.named",),
    ("_compiling.contents",),
    ("_compiling.fingerprint", "_compiling.graphs"),
    ("_compiling.programs",),
    ("_compiling.audit", "_compiling.fixed"),
    ("_compiling.dispatch", "_compiling"),
    ("_implicit_function",),
    ("implicit", "refine"),
    ("custom", "implicit_linear"),
    ("problem",),
    ("hypergradient", "_differences"),
    ("optimizer", "check"),
    ("__init__",),
)


def _files(package: str) -> list[Path]:
    return sorted((REPOSITORY / package).rglob("*.py"))


def _imports(path: Path, *, lazy: bool) -> Iterator[str]:
    """Dotted names a file imports: when it is loaded, or (lazy) inside its functions."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node, inside in _walk(tree, inside_function=False):
        if inside != lazy:
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: a relative import"
            assert node.module is not None
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def _walk(node: ast.AST, *, inside_function: bool) -> Iterator[tuple[ast.AST, bool]]:
    """Every node with whether it runs only when a function does; type-checking blocks left out."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.If) and ast.unparse(child.test) == "TYPE_CHECKING":
            continue
        yield child, inside_function
        function = isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        yield from _walk(child, inside_function=inside_function or function)


def _layer(module: str) -> int:
    """The layer of a dotted name such as ``bilevel.solvers.cg.CG``."""
    parts = module.split(".")[1:]
    for name in (".".join(parts[:2]), ".".join(parts[:1]) or "__init__"):
        for index, names in enumerate(LAYERS):
            if name in names:
                return index
    return _layer("bilevel")  # a public name, imported from the package itself


def _module(path: Path) -> str:
    return ".".join(path.relative_to(REPOSITORY).with_suffix("").parts)


def test_bilevel_imports_torch_and_the_standard_library_alone() -> None:
    allowed = sys.stdlib_module_names | {"torch", "bilevel"}
    for path in _files("bilevel"):
        found = {name.split(".")[0] for name in _imports(path, lazy=False)}
        assert found <= allowed, path


def test_bilevel_reaches_for_numpy_and_scipy_only_where_it_bridges_to_them() -> None:
    allowed = sys.stdlib_module_names | {"torch", "bilevel"}
    for path in _files("bilevel"):
        extra = {"numpy", "scipy"} if path.name in BRIDGES else set()
        found = {name.split(".")[0] for name in _imports(path, lazy=True)}
        assert found <= allowed | extra, path


@pytest.mark.parametrize("package", PACKAGES)
def test_no_package_imports_the_tests_examples_or_benchmarks(package: str) -> None:
    for path in _files(package):
        found = {name.split(".")[0] for lazy in (False, True) for name in _imports(path, lazy=lazy)}
        assert not found & {"tests", "examples", "benchmarks"}, path


def test_every_module_of_bilevel_has_a_layer() -> None:
    listed = {name for names in LAYERS for name in names}
    found = {_module(path).removeprefix("bilevel.") for path in _files("bilevel")}
    wanted = {name.removesuffix(".__init__") for name in found}
    whole = {name for name in wanted if name.split(".")[0] == "solvers"}  # one layer
    assert (wanted - whole) ^ (listed - {"solvers"}) == set()
    assert whole


def test_imports_within_bilevel_run_downward() -> None:
    for path in _files("bilevel"):
        module = _module(path)
        for name in _imports(path, lazy=False):
            if name.startswith("bilevel"):
                assert _layer(name) <= _layer(module), f"{module} imports {name}"


def test_one_solver_does_not_import_another_but_for_auto_and_its_parts() -> None:
    shared = ("bilevel.solvers.base",)
    for path in _files("bilevel/solvers"):
        if path.stem in ("__init__", "auto", "_reorthogonalized_cg"):
            continue
        for name in _imports(path, lazy=False):
            assert not name.startswith("bilevel.solvers") or name.startswith(shared), path


@pytest.mark.parametrize("package", PACKAGES)
def test_every_public_name_says_what_it_is(package: str) -> None:
    for path in (REPOSITORY / package).rglob("__init__.py"):
        module = importlib.import_module(".".join(path.parent.relative_to(REPOSITORY).parts))
        for name in getattr(module, "__all__", ()):
            value = getattr(module, name)
            if inspect.isclass(value) or inspect.isroutine(value):
                assert inspect.getdoc(value), name
            for member, attribute in inspect.getmembers(value, inspect.isroutine):
                if inspect.isclass(value) and not member.startswith("_"):
                    assert inspect.getdoc(attribute), f"{name}.{member}"


@pytest.mark.parametrize("package", PACKAGES)
def test_a_file_holds_one_idea_in_at_most_400_lines(package: str) -> None:
    lines = {str(path): path.read_text(encoding="utf-8").count("\n") for path in _files(package)}
    assert not {path: count for path, count in lines.items() if count > 400}
