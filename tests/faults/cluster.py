"""Three things that go wrong on a cluster of several nodes, one after the other; run by tests/test_several_nodes.py.

A process of its own, since a node that goes takes with it whatever runs there. Argument: a folder with the input and
the proxy.
"""

import os
import socket
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import ray
from ray.cluster_utils import Cluster

from razor_ray.cli import run

MIB = 2**20


def free_ports(number: int) -> list[int]:
    """Ports that nobody listens on, so that no other Ray of this machine is met."""
    sockets = [socket.socket() for _ in range(number)]
    for one in sockets:
        one.bind(("127.0.0.1", 0))
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports


def start() -> Cluster:
    """A head without work, and two nodes of a CPU."""
    gcs, dashboard, agent = free_ports(3)
    ports = {"gcs_server_port": gcs, "dashboard_port": dashboard, "dashboard_agent_listen_port": agent}
    head = ports | {"num_cpus": 0, "include_dashboard": False, "object_store_memory": 100 * MIB}
    # Without hooks for the end of the process: those can be set in the main thread only, and nodes come from another.
    cluster = Cluster(initialize_head=True, head_node_args=head, shutdown_at_exit=False)
    for _ in range(2):
        add(cluster)
    os.environ["RAY_ADDRESS"] = cluster.address
    return cluster


def add(cluster: Cluster) -> None:
    cluster.add_node(num_cpus=1, object_store_memory=100 * MIB, wait=True)


class When(threading.Thread):
    """Does something as soon as a condition holds; without it, nothing, and `end` says so."""

    def __init__(self, condition: Callable[[], bool], do: Callable[[], None]) -> None:
        super().__init__(daemon=True)
        self.condition, self.do, self.has_held, self.is_over = condition, do, False, threading.Event()
        self.start()

    def run(self) -> None:
        while not self.is_over.wait(0.05):
            if self.condition():
                self.has_held = True
                self.do()
                return

    def end(self, what: str) -> None:
        """Wait for what has begun, and fail if the condition has not held until now."""
        self.is_over.set()
        self.join()
        assert self.has_held, f"no node was lost in {what}: it was over before"


def lose_a_node(cluster: Cluster) -> None:
    """As a spot node goes: killed, without a farewell. An autoscaler brings another."""
    node = sorted(cluster.worker_nodes, key=lambda node: node.node_id)[0]
    cluster.remove_node(node, allow_graceful=False)
    print("a node was lost", flush=True)
    add(cluster)


def prune(folder: Path, output: Path, num_workers: int = 2) -> int:
    arguments = ["--input", f"{folder}/in", "--proxy.weights", f"{folder}/proxy.safetensors", "--keep-fraction", "0.3"]
    return run("prune", [*arguments, "--output", str(output), "--score.num-workers", str(num_workers)])


def main(folder: Path) -> int:
    cluster = start()
    try:
        assert prune(folder, folder / "undisturbed", num_workers=1) == 0
        output = folder / "nodes"
        scores = output / "_staging" / "scores"
        lost = When(lambda: len(list(scores.glob("part-*"))) >= 2, lambda: lose_a_node(cluster))
        assert prune(folder, output) == 0, "scoring did not survive the loss of a node"
        lost.end("scoring")
        # Sampling: from the scores on, all of it again.
        for stage in ("selection", "subset"):
            (output / stage / ".commit.json").unlink()
        selection = output / "_staging" / "selection"
        lost = When(selection.exists, lambda: lose_a_node(cluster))
        assert prune(folder, output) == 0, "sampling did not survive the loss of a node"
        lost.end("sampling")
        # Training: the environment says at which of its writes a worker is killed.
        paths = ["--input", f"{folder}/in", "--output", f"{folder}/trained"]
        # Streamed, so that epochs overlap.
        options = ["--num-workers", "2", "--epochs", "3", "--augment", "none", "--cache-gib", "0"]
        assert run("train", [*paths, *options]) == 0, "training did not survive the loss of a worker"
        return 0
    finally:
        ray.shutdown()
        cluster.shutdown()


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
