"""jobs/rayjob.yaml: what KubeRay must find in it, and the job that it promises. Ray ships no schema for it."""

import re
import shlex
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

from razor_ray.cli import parse
from razor_ray.config import PruneConfig

ROOT = Path(__file__).parent.parent
JOB: dict[str, Any] = yaml.safe_load((ROOT / "jobs" / "rayjob.yaml").read_text(encoding="utf-8"))
SPEC, CLUSTER = JOB["spec"], JOB["spec"]["rayClusterSpec"]
GROUPS = {group["groupName"]: group for group in CLUSTER["workerGroupSpecs"]}


def containers() -> list[dict[str, Any]]:
    templates = [CLUSTER["headGroupSpec"]["template"], *(group["template"] for group in GROUPS.values())]
    return [container for template in templates for container in template["spec"]["containers"]]


def test_it_is_a_rayjob():
    assert (JOB["apiVersion"], JOB["kind"]) == ("ray.io/v1", "RayJob")
    assert re.fullmatch(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?", JOB["metadata"]["name"])
    assert len(JOB["metadata"]["name"]) <= 47  # KubeRay appends to it
    assert SPEC.keys() == {
        *("entrypoint", "backoffLimit", "activeDeadlineSeconds", "shutdownAfterJobFinishes", "ttlSecondsAfterFinished"),
        *("submissionMode", "rayClusterSpec"),
    }


def test_the_command_is_one_that_we_take():
    words = shlex.split(SPEC["entrypoint"])
    assert words[:2] == ["razor-ray", "prune"]
    config, cluster = parse(PruneConfig, words[2:])
    assert cluster.address is None  # it runs in the cluster
    assert config.input.path.startswith("s3://") and config.output.startswith("s3://")  # seen by every pod


def test_it_tries_again_and_cleans_up():
    assert SPEC["backoffLimit"] >= 3
    assert SPEC["shutdownAfterJobFinishes"] is True  # without it ttlSecondsAfterFinished is refused
    assert 0 < SPEC["ttlSecondsAfterFinished"] <= 600  # until then the cluster is paid for
    assert SPEC["activeDeadlineSeconds"] > 0
    assert SPEC["submissionMode"] == "K8sJobMode"  # the one whose retries KubeRay supports with backoffLimit


def test_versions_are_pinned_and_agree():
    pinned = re.search(r"^ray==(\S+)$", (ROOT / "constraints.txt").read_text(encoding="utf-8"), re.MULTILINE)
    own = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["version"]
    assert pinned is not None
    assert CLUSTER["rayVersion"] == pinned[1]
    images = {container["image"] for container in containers()}
    assert len(images) == 1  # one Python and one package everywhere
    assert images.pop().rpartition(":")[2] == f"{own}-ray{pinned[1]}"


def test_nobody_without_the_token_is_let_in():
    # The dashboard, which takes jobs, listens on the pod's address, since KubeRay asks it from another pod.
    assert CLUSTER["headGroupSpec"]["rayStartParams"]["dashboard-host"] == "0.0.0.0"
    assert CLUSTER["authOptions"] == {"mode": "token"}
    assert tuple(int(part) for part in CLUSTER["rayVersion"].split(".")) >= (2, 52)  # the first with tokens
    # A container's own setting would go before KubeRay's.
    assert not any("RAY_AUTH_MODE" in str(container) for container in containers())


def test_the_head_does_no_work_and_groups_are_bounded():
    assert CLUSTER["enableInTreeAutoscaling"] is True
    assert CLUSTER["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"
    for group in GROUPS.values():
        assert group["minReplicas"] == group["replicas"] == 0
        assert 0 < group["maxReplicas"] <= 16


@pytest.mark.parametrize("container", containers(), ids=lambda container: container["name"])
def test_containers_ask_for_what_they_may_use(container):
    # Ray reads the limits: a pod without them would be taken for the whole node.
    resources = container["resources"]
    assert resources["limits"] == resources["requests"]
    assert {"cpu", "memory"} <= resources["limits"].keys()
    assert container["name"] in ("ray-head", "ray-worker")
    assert all(value != "" for value in container["image"].split(":"))
    # Secrets come from Kubernetes and stand in no file.
    assert container["envFrom"] == [{"secretRef": {"name": "razor-ray-credentials"}}]
    assert "env" not in container


def test_gpus_are_asked_for_where_they_are_meant():
    gpus = {name: group["template"]["spec"]["containers"][0]["resources"]["limits"] for name, group in GROUPS.items()}
    assert "nvidia.com/gpu" in gpus["gpu"] and "nvidia.com/gpu" not in gpus["cpu"]
