"""The wall: outside stages/, pipeline.py and cli.py nothing imports Ray, and imports run one way."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

import razor_ray

PACKAGE = Path(razor_ray.__file__).parent
REPOSITORY = PACKAGE.parent
MODULES = {
    ".".join(path.relative_to(REPOSITORY).with_suffix("").parts).removesuffix(".__init__"): path
    for path in sorted(PACKAGE.rglob("*.py"))
}
MAY_IMPORT_RAY = ("razor_ray.stages", "razor_ray.pipeline", "razor_ray.cli")


def is_in(module: str, folders: tuple[str, ...]) -> bool:
    return any(module == folder or module.startswith(f"{folder}.") for folder in folders)


def imported(tree: ast.AST) -> set[str]:
    """Full names that import statements in a tree name, those in functions too: 'from a import b' gives a and a.b."""
    names: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative import"
            names |= {node.module or ""} | {f"{node.module}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith(("import_module", "__import__")):
            names |= {value.value for value in node.args if isinstance(value, ast.Constant)}
    return names


def at_the_top(tree: ast.Module) -> ast.Module:
    """The statements that run when a module is imported, without those for type checkers."""
    kept = []
    for statement in tree.body:
        is_typing = isinstance(statement, ast.If) and "TYPE_CHECKING" in ast.unparse(statement.test)
        if not is_typing and not isinstance(statement, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            kept.append(statement)
    return ast.Module(kept, [])


def parse(module: str) -> ast.Module:
    return ast.parse(MODULES[module].read_text())


def own_imports(module: str, tree: ast.Module) -> set[str]:
    return {name for name in imported(tree) if name in MODULES and name not in (module, "razor_ray")}


def test_the_walk_finds_the_modules():
    assert {"razor_ray.weights", "razor_ray.stages.score", "razor_ray.pipeline", "razor_ray.cli"} <= MODULES.keys()
    assert "ray" in imported(ast.parse("def f():\n    import ray"))
    assert "ray.data" in imported(ast.parse("from ray import data"))
    assert any(name.split(".")[0] == "ray" for name in imported(parse("razor_ray.stages.score")))
    assert own_imports("razor_ray.cli", parse("razor_ray.cli")) >= {"razor_ray.config", "razor_ray.pipeline"}
    assert "razor_ray.pipeline" not in own_imports("razor_ray.cli", at_the_top(parse("razor_ray.cli")))


@pytest.mark.parametrize("module", [module for module in MODULES if not is_in(module, MAY_IMPORT_RAY)])
def test_nothing_else_imports_ray(module):
    found = {name for name in imported(parse(module)) if name.split(".")[0] == "ray"}
    assert not found, f"{module} imports {', '.join(sorted(found))}"


def test_the_command_line_imports_ray_only_when_it_runs():
    assert not {name for name in imported(at_the_top(parse("razor_ray.cli"))) if name.split(".")[0] == "ray"}


def test_who_scores_does_not_wait_for_a_compiler():
    """torchvision brings torch's along, a second of every process; it is imported where it is used."""
    script = "import sys, razor_ray.stages.score; print({'torch', 'torchvision', 'torch._dynamo'} & sys.modules.keys())"
    loaded = subprocess.run([sys.executable, "-c", script], cwd=REPOSITORY, capture_output=True, text=True)
    assert loaded.stdout == "{'torch'}\n", loaded.stderr


@pytest.mark.parametrize("name", ["catalog", "preflight", "exchange", "weigh", "sample", "subset", "decode"])
def test_who_does_not_compute_does_not_wait_for_torch(name):
    """Two seconds of every process, and Ray starts many: to look at a folder, to split a file, to deal out rows."""
    script = f"import sys, razor_ray.stages.{name}; print({{'torch', 'ray.train'}} & sys.modules.keys())"
    loaded = subprocess.run([sys.executable, "-c", script], cwd=REPOSITORY, capture_output=True, text=True)
    assert loaded.stdout == "set()\n", loaded.stderr


def layer(module: str) -> int:
    """config, schema <- pure modules <- stages <- pipeline <- cli <- __main__."""
    if module in ("razor_ray", "razor_ray.config", "razor_ray.schema"):
        return 0
    above = ("razor_ray.stages", "razor_ray.pipeline", "razor_ray.cli", "razor_ray.__main__")
    for number, folder in enumerate(above, 2):
        if is_in(module, (folder,)):
            return number
    return 1


@pytest.mark.parametrize("module", list(MODULES))
def test_imports_run_one_way(module):
    above = {name for name in own_imports(module, parse(module)) if layer(name) > layer(module)}
    assert not above, f"{module} imports {', '.join(sorted(above))}, which is above it"


def test_config_and_schema_stand_alone():
    for module in ("razor_ray", "razor_ray.config", "razor_ray.schema"):
        assert not own_imports(module, parse(module))


def test_charts_know_of_no_run():
    assert own_imports("razor_ray.charts", parse("razor_ray.charts")) == {"razor_ray.markup"}
    assert not own_imports("razor_ray.markup", parse("razor_ray.markup"))


def test_no_circle():
    graph = {module: own_imports(module, at_the_top(parse(module))) for module in MODULES}
    try:
        order = list(TopologicalSorter(graph).static_order())
    except CycleError as error:
        pytest.fail(f"a circle of imports: {' -> '.join(error.args[1])}")
    assert sorted(order) == sorted(MODULES)
    method = [order.index(f"razor_ray.{name}") for name in ("hashing", "clusters", "sampling", "stages.sample")]
    assert method == sorted(method)  # each imports the one before it


def test_jobs_are_thin():
    for script in ("prune", "train", "compare"):
        found = imported(ast.parse((REPOSITORY / "jobs" / f"{script}.py").read_text()))
        assert {name for name in found if name.startswith("razor_ray")} == {
            "razor_ray.cli",
            "razor_ray.cli.leave",
            "razor_ray.cli.run",
        }


CHECK = """
import sys
import razor_ray, razor_ray.weights, razor_ray.sampling, razor_ray.clusters, razor_ray.charts
for name in ("ray", "torch", "sklearn"):
    assert name not in sys.modules, f"razor_ray.weights, .sampling, .clusters or .charts loads {name}"
import razor_ray.hardness
assert "torch" in sys.modules
assert "ray" not in sys.modules, "razor_ray.hardness loads ray"
import razor_ray.images, razor_ray.model, razor_ray.training, razor_ray.sources, razor_ray.manifest, razor_ray.report
assert "ray" not in sys.modules, "a pure module loads ray"
"""


def test_the_method_loads_without_ray():
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY)}
    ended = subprocess.run(
        [sys.executable, "-c", CHECK], env=environment, capture_output=True, text=True, timeout=120, check=False
    )
    assert ended.returncode == 0, ended.stderr
