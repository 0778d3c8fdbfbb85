"""cluster.yaml: valid for Ray's launcher, and the cluster that it promises."""

import copy
import importlib.util
import json
import re
import tomllib
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
PINS = re.findall(r"^([\w.-]+)==(\S+)$", (ROOT / "constraints.txt").read_text(encoding="utf-8"), re.MULTILINE)
PINNED = {canonicalize_name(name): version for name, version in PINS}


def _launcher_schema() -> dict[str, Any]:
    package = importlib.util.find_spec("ray")  # found, not imported: the schema is a file
    assert package is not None
    assert package.origin is not None
    return json.loads((Path(package.origin).parent / "autoscaler" / "ray-schema.json").read_text(encoding="utf-8"))


def _is_gpu_type(node_type: dict[str, Any]) -> bool:
    return node_type["node_config"]["InstanceType"][0] in "gp"  # AWS: g5.4xlarge, p5.48xlarge


def _image_problems(config: dict[str, Any]) -> list[str]:
    problems = []
    images = {"docker": config["docker"]["image"]}
    for name, node_type in config["available_node_types"].items():
        images[name] = node_type.get("docker", {}).get("worker_image", images["docker"])
        if _is_gpu_type(node_type) and not images[name].endswith("-gpu"):
            problems.append(f"{name}: a GPU instance without a GPU image")
    for place, image in images.items():
        tag = re.fullmatch(r"rayproject/ray:([\d.]+)-py3(\d+)(-gpu)?", image)
        if tag is None:
            problems.append(f"{place}: image not pinned to a Ray and a Python")
        elif tag[1] != PINNED["ray"]:
            problems.append(f"{place}: image has another Ray than constraints.txt")
        elif f"3.{tag[2]}" not in SpecifierSet(PROJECT["requires-python"]):
            problems.append(f"{place}: image has a Python that pyproject.toml excludes")
    return problems


def _node_type_problems(config: dict[str, Any]) -> list[str]:
    problems = []
    workers = dict(config["available_node_types"])
    head = workers.pop(config["head_node_type"])
    if not (head["resources"].get("CPU") == head["resources"].get("GPU") == head.get("max_workers") == 0):
        problems.append("head: runs work")
    if "InstanceMarketOptions" in head["node_config"]:
        problems.append("head: on spot")
    for name, worker in workers.items():
        if not {"min_workers", "max_workers"} <= worker.keys():
            problems.append(f"{name}: not bounded")
        elif not 0 <= worker["min_workers"] <= worker["max_workers"] or worker["max_workers"] == 0:
            problems.append(f"{name}: bounds cannot be met")
        if worker["node_config"].get("InstanceMarketOptions", {}).get("MarketType") != "spot":
            problems.append(f"{name}: not on spot")
    if sum(worker.get("max_workers", 0) for worker in workers.values()) > config["max_workers"]:
        problems.append("max_workers: less than the types' together")
    if {_is_gpu_type(worker) for worker in workers.values()} != {False, True}:
        problems.append("workers: not both CPU and GPU")
    if not 0 < config.get("idle_timeout_minutes", 0) <= 30:
        problems.append("idle_timeout_minutes: idle workers would go on costing")
    return problems


def _package_problems(config: dict[str, Any]) -> list[str]:
    mounts = config["file_mounts"]
    wheel = f"razor_ray-{PROJECT['version']}-py3-none-any.whl"
    installs = [command for command in config["setup_commands"] if command.startswith("pip install")]
    package_folders = [remote for remote, local in mounts.items() if local == "dist"]
    wanted = [f"pip install -c {folder}/constraints.txt {folder}/{wheel}" for folder in package_folders]
    return [] if wanted and wanted == installs else ["setup_commands: not this version of the package, pinned"]


def _token_problems(config: dict[str, Any]) -> list[str]:
    options = config["docker"].get("run_options", [])
    path = next((option.split("=", 1)[1] for option in options if option.startswith("-e RAY_AUTH_TOKEN_PATH=")), None)
    if "-e RAY_AUTH_MODE=token" in options and config["file_mounts"].get(path) == "~/.ray/auth_token":
        return []
    return ["docker: no token authentication"]


def problems_of(config: dict[str, Any]) -> list[str]:
    """What keeps this cluster from being the promised one, beyond Ray's schema."""
    return _image_problems(config) + _node_type_problems(config) + _package_problems(config) + _token_problems(config)


@pytest.fixture
def config() -> dict[str, Any]:
    # A copy through JSON: YAML's anchors make one object of several places, and a test would change them all.
    return json.loads(json.dumps(yaml.safe_load((ROOT / "cluster.yaml").read_text(encoding="utf-8"))))


def _changed(config: dict[str, Any], path: str, value: Any) -> dict[str, Any]:
    """Return a copy with the entry at `path` set, or removed where `value` is None."""
    changed = copy.deepcopy(config)
    *parents, key = path.split("/")
    node = changed
    for parent in parents:
        node = node[parent]
    if value is None:
        del node[key]
    else:
        node[key] = value
    return changed


def test_valid_for_the_launcher(config):
    schema = _launcher_schema()
    validator = jsonschema.validators.validator_for(schema)(schema)
    assert [error.message for error in validator.iter_errors(config)] == []


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("cluster_name", None),
        ("max_worker", 12),
        ("max_workers", "12"),
        ("idle_timeout_minutes", -1),
        ("provider/type", None),
        ("docker/worker_options", []),
        ("available_node_types/cpu-worker/resources", None),
        ("available_node_types/cpu-worker/resources/CPU", 0.5),
        ("available_node_types/gpu-worker/max_workers", 4.5),
        ("available_node_types/gpu-worker/docker/image", "rayproject/ray:2.60.0-py311-gpu"),
        ("setup_commands", "pip install razor-ray"),
    ],
)
def test_schema_refuses(config, path, value):
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(_changed(config, path, value), _launcher_schema())


def test_is_the_promised_cluster(config):
    assert problems_of(config) == []


@pytest.mark.parametrize(
    ("path", "value", "problem"),
    [
        ("docker/image", "rayproject/ray:latest", "docker: image not pinned"),
        ("docker/image", "rayproject/ray:2.59.0-py311", "docker: image has another Ray"),
        ("docker/image", "rayproject/ray:2.60.0-py310", "docker: image has a Python"),
        ("available_node_types/gpu-worker/docker", None, "gpu-worker: a GPU instance without a GPU image"),
        ("available_node_types/head/resources/CPU", 4, "head: runs work"),
        ("available_node_types/head/node_config/InstanceMarketOptions", {"MarketType": "spot"}, "head: on spot"),
        ("available_node_types/cpu-worker/max_workers", None, "cpu-worker: not bounded"),
        ("available_node_types/cpu-worker/min_workers", 9, "cpu-worker: bounds cannot be met"),
        ("available_node_types/cpu-worker/max_workers", 9, "max_workers: less than"),
        ("available_node_types/gpu-worker/node_config/InstanceMarketOptions", None, "gpu-worker: not on spot"),
        ("available_node_types/gpu-worker/node_config/InstanceType", "m5.large", "workers: not both"),
        ("idle_timeout_minutes", None, "idle_timeout_minutes"),
        ("setup_commands", ["pip install razor-ray"], "setup_commands"),
        ("docker/run_options", [], "docker: no token authentication"),
        ("file_mounts", {"/home/ray/razor-ray": "dist"}, "docker: no token authentication"),
    ],
)
def test_a_wrong_cluster_is_noticed(config, path, value, problem):
    assert any(found.startswith(problem) for found in problems_of(_changed(config, path, value)))


def test_the_constraints_name_no_index_no_host_and_no_local_build():
    # 'torch==2.15.0+cpu', an option or a URL would tie the installation to one place.
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    assert [line for line in lines if not re.fullmatch(r"[\w.-]+==[\w.]+", line) and not line.startswith("#")] == []
    assert not [line for line in lines if "://" in line]


def test_every_direct_dependency_is_pinned_within_its_bounds():
    lines = PROJECT["dependencies"] + PROJECT["optional-dependencies"]["dev"]
    wrong = [
        line
        for line in map(Requirement, lines)
        if (pin := PINNED.get(canonicalize_name(line.name))) is None or pin not in line.specifier
    ]
    assert wrong == []
    assert PINNED["torch"] != "2.13.0"
