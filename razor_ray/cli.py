"""razor-ray <verb>: run here, or submit to a cluster with --address."""

from __future__ import annotations

import asyncio
import contextlib
import difflib
import errno
import io
import json
import os
import shlex
import signal
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, Generic, NoReturn, TypeVar

import tyro

import razor_ray
from razor_ray import blame, sources
from razor_ray import config as configuration
from razor_ray.config import AnyConfig, CompareConfig, PruneConfig, TrainConfig, to_dict
from razor_ray.interrupt import StoppedError
from razor_ray.progress import say
from razor_ray.run_store import CONFIG, open_filesystem
from razor_ray.shards import told_of

_USAGE = """usage: razor-ray <verb> [options]

  prune    choose a subset of labelled images and write it as Parquet
  train    train a network on a subset, or on any labelled images
  compare  train on what several methods keep of a pruned dataset, and compare them

razor-ray <verb> --help lists the options of a verb."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ClusterOptions:
    """Where the run happens."""

    address: str | None = None
    """Submit to the Ray cluster whose dashboard is here, such as http://head:8265, and follow its log. Paths of the
    input and output must then be visible from the cluster. Without it the run happens here."""
    working_dir: str | None = None
    """With --address: ship this folder to the cluster, for example a checkout of razor_ray or code for a network."""
    max_restarts: int = 0
    """With --address: submit the job again, up to so often, when it failed. It goes on from what is finished; a request
    that was refused is not repeated. Whoever follows the job does this: it ends with this command."""

    def __post_init__(self) -> None:
        if self.max_restarts < 0:
            raise ValueError(f"max_restarts must be at least 0, got {self.max_restarts}.")
        if self.max_restarts and not self.address:
            raise ValueError("max_restarts is for a job that is submitted: name the cluster with --address.")


_MAY_BE_IN_CONFIG = "What is marked as required may come from --config instead."

_REFUSED = 2
"""Exit status of a request that cannot be met, however often it is made."""

_FOLLOW_AGAIN_SECONDS = 1.0
_LONGEST_WAIT_SECONDS = 30.0
_FAILURES_IN_A_ROW = 20
"""Of following a job, before it is given up: some eight minutes."""

_FLAT = tyro.conf.arg(name="")


Config = TypeVar("Config", PruneConfig, TrainConfig, CompareConfig)


@dataclass(frozen=True, kw_only=True)  # slots would trip what `typing` notes on an instance of a generic class
class _Command(Generic[Config]):
    settings: Annotated[Config, _FLAT]
    config: str | None = None
    """A configuration in JSON, such as the config.json of another run: its settings are the defaults of all others."""
    cluster: Annotated[ClusterOptions, _FLAT] = field(default_factory=ClusterOptions)


_VERBS: dict[str, type[Any]] = {"prune": PruneConfig, "train": TrainConfig, "compare": CompareConfig}


def entry() -> NoReturn:
    """The command `razor-ray`: `main` as a process of its own."""
    leave(main())


def leave(status: int) -> NoReturn:
    """End the process with this status, without tearing down what is loaded.

    Ray, gRPC and Arrow leave native threads behind, after `ray.shutdown` too, and these race with the destructors that
    an ordinary exit calls: a job that had finished everything ended with a segmentation fault, which made it a failure.
    Ray's own workers leave in the same way. What has to be closed has been closed by now; functions that others
    registered with `atexit` are not called.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command line; returns the exit status: 0 done, 1 the run failed, 2 the request was wrong."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    if not arguments or arguments[0] in ("-h", "--help"):
        print(_USAGE)
        return 0 if arguments else 2
    if arguments[0] == "--version":
        print(razor_ray.__version__)
        return 0
    if arguments[0] not in _VERBS:
        near = difflib.get_close_matches(arguments[0], _VERBS, 1)
        meant = f" Did you mean {near[0]}?" if near else ""
        print(f"razor-ray: no verb {arguments[0]!r}.{meant}\n{_USAGE}", file=sys.stderr)
        return 2
    return run(arguments[0], arguments[1:])


def run(verb: str, arguments: Sequence[str]) -> int:
    """Run a verb here, or submit it."""
    # As `runtime.session` does, and before torch is loaded here.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    try:
        config, cluster = parse(_VERBS[verb], arguments)
        if cluster.address:
            return _submit(verb, config, cluster)
        _run_here(verb, config)
        return 0
    except (ValueError, OSError) as error:
        if isinstance(error, ValueError) and not blame.is_ours(error):
            raise  # no refusal, which says what to mend, but a fault, which needs its traceback
        print(f"razor-ray {verb}: {_explain(error)}", file=sys.stderr)
        return 1 if isinstance(error, OSError) else _REFUSED
    except StoppedError as error:
        print(f"razor-ray {verb}: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt as stop:
        print(f"\nrazor-ray {verb}: stopped. The same command goes on from what is finished.", file=sys.stderr)
        return 128 + (stop.args[0] if stop.args else signal.SIGINT)


def parse(kind: type[Any], arguments: Sequence[str]) -> tuple[Any, ClusterOptions]:
    """Read a verb's command line: `--config` (a file, or JSON itself) gives the settings, further options change them.

    Raises
    ------
    ValueError
        If a setting is out of its range.
    """
    verb = next(verb for verb, of in _VERBS.items() if of is kind)
    kind_of_command: Any = _Command[kind]
    given, rest = _take_config(list(arguments))
    defaults = {}
    if given is not None:
        text = given if given.lstrip().startswith("{") else _read_text(given)
        defaults["default"] = kind_of_command(settings=configuration.load(kind, text))
    messages = io.StringIO()
    try:
        with contextlib.redirect_stderr(messages):
            command = tyro.cli(
                kind_of_command,
                prog=f"razor-ray {verb}",
                description=f"{kind.__doc__} {_MAY_BE_IN_CONFIG}",
                args=rest,
                **defaults,
            )
    except BrokenPipeError:  # whoever read the help has seen enough of it
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise SystemExit(128 + signal.SIGPIPE) from None
    except SystemExit as stop:
        if refusal := _refusal(stop):
            raise ValueError(str(refusal)) from None
        print(messages.getvalue(), end="", file=sys.stderr)
        raise
    return command.settings, command.cluster


def _take_config(arguments: list[str]) -> tuple[str | None, list[str]]:
    """The value of --config, and the other arguments."""
    for at, argument in enumerate(arguments):
        if argument == "--config":
            if at + 1 == len(arguments):
                raise ValueError(f"--config needs a file, such as RUN/{CONFIG}.")
            return arguments[at + 1], arguments[:at] + arguments[at + 2 :]
        if argument.startswith("--config="):
            return argument.removeprefix("--config="), arguments[:at] + arguments[at + 1 :]
    return None, arguments


def _refusal(stop: BaseException) -> BaseException | None:
    """What a check of config.py said, behind the box that tyro draws around it and ends with."""
    error: BaseException | None = stop
    while error := error.__context__ if error else None:
        frame = error.__traceback__
        while frame and frame.tb_next:
            frame = frame.tb_next
        if isinstance(error, ValueError) and frame and frame.tb_frame.f_code.co_filename == configuration.__file__:
            return error
    return None


def _run_here(verb: str, config: AnyConfig) -> None:
    # A mistyped path, or the name of a column, is told at once.
    source = None
    if not isinstance(config, CompareConfig) and not (isinstance(config, PruneConfig) and config.scores_from):
        source = sources.find(config.input)
        sources.check_columns(source, config.input)
    if not isinstance(config, PruneConfig) and (held_out := config.eval.as_input()):
        with told_of("--eval"):
            sources.check_columns(sources.find(held_out), held_out)
    say("begin     loading torch and Ray")  # which take some seconds, and Ray's start as many again
    from razor_ray import pipeline

    verbs: dict[str, Callable[[Any], Any]] = {
        "prune": lambda config: pipeline.prune(config, source),
        "train": lambda config: pipeline.train(config, source),
        "compare": lambda config: print(pipeline.compare(config)),
    }
    verbs[verb](config)


def _submit(verb: str, config: AnyConfig, cluster: ClusterOptions) -> int:
    from ray.job_submission import JobSubmissionClient

    try:
        client = JobSubmissionClient(cluster.address)
    except (ConnectionError, RuntimeError) as error:
        raise ValueError(f"cannot reach a Ray cluster at {cluster.address}: {error}") from error
    status = _run_job(client, verb, config, cluster)
    for number in range(1, cluster.max_restarts + 1):
        if status in (0, _REFUSED, None):
            break
        print(f"restart {number} of {cluster.max_restarts}", file=sys.stderr)
        status = _run_job(client, verb, config, cluster)
    return 1 if status is None else status


def _run_job(client: Any, verb: str, config: AnyConfig, cluster: ClusterOptions) -> int | None:
    """Submit a job and follow it to its end; gives its exit status, None if a person stopped it."""
    try:
        job = client.submit_job(
            # The settings themselves: a configuration file that lies here could not be read there.
            entrypoint=shlex.join(["python", "-m", "razor_ray.cli", verb, "--config", json.dumps(to_dict(config))]),
            runtime_env={"working_dir": cluster.working_dir} if cluster.working_dir else None,
            metadata={
                "razor_ray": razor_ray.__version__,
                "verb": verb,
                "output": config.output,
                "configuration": configuration.digest(config),
            },
        )
    except ValueError as error:
        raise ValueError(f"cannot ship --working-dir {cluster.working_dir}: {error}") from error
    except RuntimeError as error:  # such as that none of its agents has answered yet
        print(f"{cluster.address} has not taken the job: {error}", file=sys.stderr)
        return 1
    print(f"submitted {job}; it goes on if you stop following it with Ctrl-C", file=sys.stderr)
    ways = (f"ray job {what} --address {cluster.address} {job}" for what in ("logs --follow", "stop"))
    goes_on = f"{job} goes on. Follow it, or end it: {', '.join(ways)}"
    try:
        info = _follow_to_the_end(client, job)
    except KeyboardInterrupt:
        print(f"\n{goes_on}", file=sys.stderr)
        raise SystemExit(128 + signal.SIGINT) from None
    except _LostError as error:
        # Not a failure of the job, which another must not be submitted beside.
        print(f"lost the connection to {cluster.address}: {error}\n{goes_on}", file=sys.stderr)
        raise SystemExit(1) from None
    print(f"job {job} {info.status.value.lower()}", file=sys.stderr)
    if info.status.value == "SUCCEEDED":
        return 0
    if info.status.value == "STOPPED":
        return None
    # Killed by a signal or lost with its node: a failure without a status of its own.
    return info.driver_exit_code if (info.driver_exit_code or 0) > 0 else 1


class _LostError(Exception):
    """The cluster has not answered for long."""


def _follow_to_the_end(client: Any, job: str) -> Any:
    """Show a job's log until it has ended; gives what the cluster then says of it.

    A connection that ends or fails is made anew, since the job goes on without it.
    """
    from aiohttp import ClientError

    num_failures = 0
    log = _Log(client, job)
    while True:
        try:
            asyncio.run(log.follow())
            info = client.get_job_info(job)
        except (OSError, RuntimeError, ClientError) as error:  # requests' are OSErrors, Ray's own RuntimeErrors
            num_failures += 1
            if num_failures == _FAILURES_IN_A_ROW:
                raise _LostError(str(error) or type(error).__name__) from error
        else:
            if info.status.is_terminal():
                return info
            num_failures = 0
        time.sleep(min(_FOLLOW_AGAIN_SECONDS * 2 ** max(num_failures - 1, 0), _LONGEST_WAIT_SECONDS))


class _Log:
    """A job's log, each line of it shown once, though every connection gives it from the beginning."""

    def __init__(self, client: Any, job: str) -> None:
        self.client, self.job = client, job
        self.num_shown = 0
        """Characters."""

    async def follow(self) -> None:
        """Show what comes of the log until the connection ends."""
        num_seen = 0
        async for text in self.client.tail_job_logs(self.job):
            num_seen += len(text)
            if num_seen > self.num_shown:
                print(text[self.num_shown - num_seen :], end="", flush=True)
                self.num_shown = num_seen


def _read_text(uri: str) -> str:
    filesystem, path = open_filesystem(uri)
    try:
        with filesystem.open_input_stream(path) as stream:
            return stream.read().decode()
    except (FileNotFoundError, OSError) as error:
        raise ValueError(f"cannot read {uri}: {error}") from error


def _explain(error: Exception) -> str:
    error = getattr(error, "cause", error)  # Ray wraps the errors of its tasks
    if isinstance(error, OSError) and error.errno == errno.ENOSPC:
        where = f" ({error.filename})" if error.filename else ""
        return f"no space left on the disk{where}. Make room, and the same command goes on from what is finished."
    if isinstance(error, OSError) and not isinstance(error, FileNotFoundError):
        return f"{str(error).rstrip('.')}. Once that is mended, the same command goes on from what is finished."
    return str(error)


if __name__ == "__main__":
    entry()
