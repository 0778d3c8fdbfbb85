"""The Ray session, and plain tasks over it."""

from __future__ import annotations

import inspect
import itertools
import logging
import os
import signal
import sys
import tempfile
import threading
import traceback
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any, Literal

import ray
from ray.exceptions import RayError, RayTaskError
from ray.util.accelerators import (
    NVIDIA_TESLA_K80,
    NVIDIA_TESLA_P4,
    NVIDIA_TESLA_P100,
    NVIDIA_TESLA_T4,
    NVIDIA_TESLA_V100,
)
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from razor_ray import blame, energy
from razor_ray.interrupt import StoppedError
from razor_ray.progress import sign_of_life

_QUIET_LOGGERS = ("ray", "ray.train", "ray.tune", "ray.serve")


_IDLE_MILLISECONDS = 120_000
_SECONDS_FOR_COUNTERS = 10.0
_SECONDS_TO_FINISH = 1.0
_SECONDS_TO_HEED = 1.0
_SECONDS_TO_DIE = 10.0
_STARTS = 4
_MOST_LOST_WORKERS = 3  # of one call, as Ray has it for tasks; and of actors that begin, one after the other
_WITHOUT_BF16 = (NVIDIA_TESLA_K80, NVIDIA_TESLA_P4, NVIDIA_TESLA_P100, NVIDIA_TESLA_V100, NVIDIA_TESLA_T4)
_LATE = "timed out during startup"
"""What Ray says of a node that was."""

_opened = False
"""Whether the innermost `session` began the one it is in, which then ends with it."""
_private = False
_in_flight: Counter[str] = Counter()
"""Tasks of `run_tasks` that have not ended, by name."""


@contextmanager
def session(*, dashboard: bool = False) -> Iterator[str]:
    """Be connected to Ray: to the cluster that RAY_ADDRESS names (in a job, its own), else to a private local one.

    A session that is already open is used and left open.

    Parameters
    ----------
    dashboard : bool
        Give a private cluster its dashboard and job server.

    Yields
    ------
    str
        Address of the dashboard, 'host:port'; empty if there is none or the session was open before.

    Raises
    ------
    StoppedError
        If a private cluster does not start in time, again and again.
    """
    global _opened, _private
    if ray.is_initialized():
        _quieten()
        earlier, _opened = _opened, False
        try:
            yield ""
        finally:
            _opened = earlier
        return
    # Workers read it when they load torch. A thread that waits for another sleeps: spinning, two threads on two busy
    # cores trained four times slower.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    os.environ.setdefault("RAY_ENABLE_UV_RUN_RUNTIME_ENV", "0")  # workers use this very environment
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # do not hide GPUs from tasks that ask for none
    local = "RAY_ADDRESS" not in os.environ
    if local:
        # Ray Data's actors restart, which the core takes for an error worth a line on the terminal.
        os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
        # Nothing outside this process connects to a private cluster.
        os.environ.setdefault("RAY_AUTH_MODE", "disabled")
        # One footer reader: on a small machine more of them would hold every CPU.
        os.environ.setdefault("RAY_DATA_PARQUET_FOOTER_NUM_ACTORS", "1")
    _heed_sigterm()  # also while Ray starts
    context = _start(dashboard) if local else ray.init(logging_level=logging.ERROR, log_to_driver=False)
    _quieten()
    _heed_sigterm()  # Ray's core, once it is loaded, answers with a stack trace of its own
    _opened, _private = True, local
    try:
        yield context.dashboard_url or ""
    finally:
        _opened = _private = False
        ray.shutdown()


def _start(dashboard: bool) -> Any:
    """Start a private cluster, again where it is late.

    Ray gives a node half a minute, which is too little for a busy machine, and for one that reads Ray from a cold disk.
    """
    for number in itertools.count(1):
        try:
            with _muted_standard_error():
                return ray.init(
                    address="local",
                    include_dashboard=dashboard,
                    logging_level=logging.ERROR,
                    log_to_driver=False,
                    # Between stages workers are idle for a while. Ray would end them after a second, and the next ones
                    # would take seconds again to load torch.
                    _system_config={"idle_worker_killing_time_threshold_ms": _IDLE_MILLISECONDS},
                )
        except Exception as error:
            if _LATE not in str(error):  # it has no type of its own
                raise
            _end_node(error)
            ray.shutdown()
            if number == _STARTS:
                raise StoppedError(
                    f"Ray did not start, {number} times. This machine may be too busy, or short of memory; Ray's logs "
                    f"are in {os.environ.get('RAY_TMPDIR', tempfile.gettempdir())}/ray. The same command begins again. "
                    f"Ray says: {error}"
                ) from error


def _end_node(error: Exception) -> None:
    """End what was started of a node that was late. It is known to the node alone, which Ray does not give."""
    assert error.__traceback__ is not None
    for frame, _ in traceback.walk_tb(error.__traceback__.tb_next):
        node: Any = frame.f_locals.get("self")
        if hasattr(node, "kill_all_processes"):
            node.kill_all_processes(check_alive=False, allow_graceful=True)


def _heed_sigterm() -> None:
    """A scheduler's request to stop is as orderly as Ctrl-C."""
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, _stop)


def _stop(signal_number: int, frame: Any) -> None:
    raise KeyboardInterrupt(signal_number)


@contextmanager
def _muted_standard_error() -> Iterator[None]:
    """Keep the core's greetings, which go to the file descriptor, off the terminal. A failed start still raises."""
    sys.stderr.flush()
    kept = os.dup(2)
    with open(os.devnull, "w") as nowhere:
        os.dup2(nowhere.fileno(), 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)


def is_private() -> bool:
    """Whether the session is a local one that `session` started: this process and the cluster are one machine."""
    return _private


def num_cpus() -> int:
    """CPUs of the cluster as it is now."""
    return max(1, int(ray.cluster_resources().get("CPU", 1)))


def num_gpus(device: str = "auto") -> int:
    """GPUs of the cluster as it is now that may be used.

    Parameters
    ----------
    device : {'auto', 'cpu', 'cuda'}
        'cpu' uses none. 'cuda' must have some: on a cluster that has none now, one is counted, which its autoscaler
        then brings.

    Raises
    ------
    ValueError
        If 'cuda' is asked for on a single machine without a GPU.
    """
    found = int(ray.cluster_resources().get("GPU", 0))
    if device == "cuda" and not found:
        if is_private():
            raise ValueError("device is cuda, but this machine has no GPU that Ray can see. Pass device auto or cpu.")
        return 1
    return 0 if device == "cpu" else found


def share_of_gpu(num_workers: int) -> float:
    """What each of so many workers takes of a GPU.

    On one machine as many share each GPU, since no worker has parts of two. On a cluster nothing is shared: its
    autoscaler may bring more, and would bring none for workers that fit those that are there.
    """
    return 1 / -(-num_workers // num_gpus()) if is_private() else 1.0


def cpus_each(num_workers: int, gpu: float = 0) -> int:
    """CPUs for each of so many workers, of which each takes so much of a GPU; at least 1.

    As many as they can have when all are at work at once, or as many of them as find a GPU: a task for which no node
    has the CPUs would wait for ever, and nodes differ.
    """
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]

    def room(cpus: int) -> int:
        """Workers that find so many CPUs each."""
        by_cpu = (int(node.get("CPU", 0) // cpus) for node in nodes)
        by_gpu = (int(node.get("GPU", 0) / gpu + 1e-9) if gpu else num_workers for node in nodes)
        return sum(map(min, by_cpu, by_gpu))

    wanted = min(num_workers, room(1))
    most = max((int(node.get("CPU", 0)) for node in nodes), default=0)
    return max((cpus for cpus in range(1, most + 1) if room(cpus) >= wanted > 0), default=1)


def gpus_have_bf16() -> bool:
    """Whether the cluster's GPUs, as far as they are there, multiply bf16: older ones emulate it, and slowly."""
    return not any(f"accelerator_type:{name}" in ray.cluster_resources() for name in _WITHOUT_BF16)


def smallest_object_store() -> int:
    """Bytes of the smallest object store among the nodes that work or that this process runs on."""
    here = ray.get_runtime_context().get_node_id()
    return min(
        int(node["Resources"].get("object_store_memory", 0))
        for node in ray.nodes()
        if node["Alive"] and (node["NodeID"] == here or node["Resources"].get("CPU", 0) >= 1)
    )


def of_this_node(resource: Literal["CPU", "GPU"]) -> int:
    """CPUs or GPUs of the node that this process runs on, as Ray counts them: of a container no more than its share.

    At least 1.
    """
    here = ray.get_runtime_context().get_node_id()
    return max([1, *(int(node["Resources"].get(resource, 0)) for node in ray.nodes() if node["NodeID"] == here)])


def declared_memory(num_bytes: int, request: Mapping[str, float], at_most: int | None = None) -> int:
    """Bytes that each task, actor or worker declares who takes so many.

    No more than four fifths of an even share of a node's memory among those that it has room for otherwise: declaring
    must not make a cluster too small that is not. Of the nodes that can hold one, that are there or may come, the
    smallest decides; 0 if one of them does not tell its memory.

    Parameters
    ----------
    num_bytes : int
    request : mapping of str to float
        What one takes besides: CPU, GPU.
    at_most : int, optional
        As many as there are, if that is known.
    """
    shares = []
    for shape in node_shapes()[0]:
        rooms = [int(shape.get(name, 0) / need + 1e-9) for name, need in request.items() if need]
        num_here = min(rooms) if at_most is None else min(*rooms, at_most)
        if num_here:
            shares.append(shape.get("memory", 0) / num_here)
    return min(num_bytes, int(0.8 * min(shares, default=0)))


def node_shapes() -> tuple[list[dict[str, float]], bool]:
    """Resources of each node that is up or that the autoscaler may start, and whether these are all there can be.

    A cluster whose autoscaler does not say what it may start could start anything.
    """
    shapes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    if is_private():
        return shapes, True
    # As Ray Train does it: there is no public way to ask.
    config = ray._private.state.state.get_cluster_config()  # pyright: ignore[reportAttributeAccessIssue]
    if config is None or not config.node_group_configs:
        return shapes, False
    return shapes + [dict(group.resources) for group in config.node_group_configs if group.max_count != 0], True


def energy_counters() -> dict[str, dict[str, tuple[float, float]]]:
    """Energy counters of every node, as `energy.counters` reads them; nodes that do not answer soon are left out."""
    read = ray.remote(energy.counters)
    asked = {
        node["NodeID"]: read.options(
            num_cpus=0,
            name="read energy counters",
            scheduling_strategy=NodeAffinitySchedulingStrategy(node["NodeID"], soft=False),
        ).remote()
        for node in ray.nodes()
        if node["Alive"]
    }
    answered, _ = ray.wait(list(asked.values()), num_returns=len(asked), timeout=_SECONDS_FOR_COUNTERS)
    found = {}
    for node, ref in asked.items():
        if ref in answered:
            with suppress(RayError):  # a spot node may go while it is asked, which is no reason to stop a run
                found[node] = ray.get(ref)
    return found


def run_tasks(
    function: Callable[..., Any],
    arguments: Iterable[tuple[Any, ...]],
    *,
    name: str,
    at_most: int | None = None,
    memory: Sequence[int] = (),
    **options: float,
) -> Iterator[tuple[int, Any]]:
    """Call a function on the cluster for each tuple of arguments; object refs among them are resolved.

    A bounded number of tasks is submitted at once, so that a million calls are no million objects; no more than
    `at_most`, if that is given. `memory` is what each call declares, in bytes; `options` are Ray's: num_cpus, num_gpus.

    The function may be a generator, whose items come as it makes them. It must make the same ones when it is called
    again: if its worker is lost it is, and what has come already does not come twice.

    Yields
    ------
    (index, result)
        In the order in which they come; of a generator once for each item.

    Raises
    ------
    Exception
        What the function raised, as it was raised; of Ray's own, if its worker is lost again and again.
    """
    if inspect.isgeneratorfunction(function):
        # Ray would call it again itself, but then loses an error that comes earlier than before, and shows nothing of a
        # second call until it is where the first one was.
        options["max_retries"] = 0
    task = ray.remote(function)

    def submit(call: _Call) -> Any:
        of_call = {"memory": memory[call.index]} if memory else {}
        return task.options(name=name, **options, **of_call).remote(*call.arguments)

    pending: dict[Any, _Call] = {}
    calls = enumerate(arguments)
    try:
        while True:
            # Asked anew each time: an autoscaling cluster grows while it works.
            limit = at_most or 2 * num_cpus() + 2
            while len(pending) < limit and (call := next(calls, None)) is not None:
                pending[submit(_Call(*call))] = _Call(*call)
            _in_flight[name] = len(pending)
            if not pending:
                return
            ready: list[Any] = ray.wait(list(pending), num_returns=1)[0]
            sign_of_life()
            for result in ready:
                call = pending[result]
                is_generator = isinstance(result, ray.ObjectRefGenerator)
                if (item := next(result, None) if is_generator else result) is None:
                    del pending[result]
                    continue
                try:
                    value = _get(item)
                except Exception as error:  # no interrupt, after which the task would have to be ended
                    del pending[result]
                    is_lost = isinstance(error, RayError) and not isinstance(error, RayTaskError)
                    if not (is_generator and is_lost) or call.num_lost == _MOST_LOST_WORKERS:
                        raise
                    call.num_lost, call.num_items = call.num_lost + 1, 0
                    pending[submit(call)] = call
                    continue
                del pending[result]
                if is_generator:
                    pending[result] = call  # behind the others, whose turn it is
                call.num_items += 1
                if call.num_items > call.num_told:
                    call.num_told = call.num_items
                    yield call.index, value
    finally:
        del _in_flight[name]
        _end(list(pending))


def _end(tasks: list[Any]) -> None:
    """End tasks whose results nobody waits for any more, so that none writes a file after its caller has gone on.

    Those that are about to end may. The others are interrupted, and killed if they have not ended a while later: an
    interrupt may reach a worker where Python drops its errors, and one that waits in native code does not heed it.
    A session that was begun for these tasks ends now, and they with it.
    """
    if _opened or not ray.is_initialized():
        return
    left = [task.completed() if isinstance(task, ray.ObjectRefGenerator) else task for task in tasks]
    # Ray 2.60 aborts the whole process ("Tried to complete task that was not pending") if a task is cancelled in the
    # moment in which its result is taken in.
    left = _not_ended(left, _SECONDS_TO_FINISH)
    for force, seconds in ((False, _SECONDS_TO_HEED), (True, _SECONDS_TO_DIE)):
        for end in left:
            ray.cancel(end, force=force)
        left = _not_ended(left, seconds)


def _not_ended(ends: list[Any], seconds: float) -> list[Any]:
    return ray.wait(ends, num_returns=len(ends), timeout=seconds, fetch_local=False)[1] if ends else []


@dataclass(slots=True)
class _Call:
    """One of `run_tasks`."""

    index: int
    arguments: tuple[Any, ...]
    num_items: int = 0
    """That its worker has made."""
    num_told: int = 0
    """That any of its workers has made."""
    num_lost: int = 0
    """Of its workers."""


def in_flight() -> str:
    """Tasks that have not ended, in words; empty if there are none."""
    return ", ".join(f"{count} of {name!r}" for name, count in sorted(_in_flight.items()))


def resources() -> str:
    """What the cluster has now, and what of it is free, in words."""
    has, free = ray.cluster_resources(), ray.available_resources()
    parts = [f"{has.get(name, 0):g} {name} ({free.get(name, 0):g} free)" for name in ("CPU", "GPU")]
    memory = f"{has.get('memory', 0) / 2**30:.1f} GiB ({free.get('memory', 0) / 2**30:.1f} free)"
    num_nodes = sum(node["Alive"] for node in ray.nodes())
    return f"{', '.join(parts)} and {memory} of memory on {num_nodes} node{'' if num_nodes == 1 else 's'}"


def _get(ref: Any) -> Any:
    try:
        return ray.get(ref)
    except RayTaskError as error:
        if isinstance(error.cause, OSError) or (isinstance(error.cause, ValueError) and blame.is_ours(error)):
            raise error.cause from None  # what a user can mend: its own message, without the task's stack
        raise


def _quieten() -> None:
    for name in _QUIET_LOGGERS:
        logging.getLogger(name).setLevel(logging.ERROR)
    # Its errors are raised too, with their cause below: of a full disk a person wants one line.
    logging.getLogger("ray.data").setLevel(logging.CRITICAL)
    from ray.data import DataContext  # takes seconds to import, which most tasks need not spend

    context = DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    context.raise_original_map_exception = True
    # One bad node must not end a run; Ray's default is none.
    context.max_consecutive_actor_init_deaths = _MOST_LOST_WORKERS
