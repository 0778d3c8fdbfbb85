"""The command line: what its flags mean, what it says when a request is wrong, and what it submits."""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
import tomllib
from pathlib import Path
from types import FunctionType, SimpleNamespace

import aiohttp
import numpy as np
import pytest

import razor_ray
from razor_ray import blame, cli
from razor_ray.cli import main, parse
from razor_ray.config import InputConfig, ProxyConfig, PruneConfig, TrainConfig, to_dict

REPOSITORY = Path(razor_ray.__file__).parents[1]
MODULE, FUNCTION = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]["scripts"]["razor-ray"].split(
    ":"
)
PRUNE = ["--input", "in", "--output", "out", "--keep-fraction", "0.3"]
TRAIN = ["--input", "in", "--output", "out"]


@pytest.fixture
def ran(monkeypatch):
    """What would have been run here."""
    calls: list[tuple[str, object]] = []
    monkeypatch.setattr(cli, "_run_here", lambda verb, config: calls.append((verb, config)))
    return calls


def status_of(arguments: list[str]) -> int:
    """The process's exit status, whether it is returned or raised."""
    try:
        return main(arguments)
    except SystemExit as ended:
        return ended.code if isinstance(ended.code, int) else 1


# Verbs.


@pytest.mark.parametrize(
    ("arguments", "status", "out", "err"),
    [
        (["--help"], 0, "usage: razor-ray <verb>", ""),
        (["-h"], 0, "prune", ""),
        ([], 2, "usage: razor-ray <verb>", ""),
        (["--version"], 0, razor_ray.__version__, ""),
        (["pruen"], 2, "", "razor-ray: no verb 'pruen'. Did you mean prune?\n"),
        (["--input", "x"], 2, "", "no verb '--input'"),
        (["prune", "--help"], 0, "--keep-fraction", ""),
        (["train", "--help"], 0, "--num-workers", ""),
    ],
)
def test_verbs_and_help(arguments, status, out, err, capsys):
    assert status_of(arguments) == status
    shown = capsys.readouterr()
    assert out in shown.out
    assert err in shown.err
    assert bool(shown.err) == bool(err)


@pytest.mark.parametrize("verb", ["prune", "train", "compare"])
def test_help_tells_what_else_gives_a_required_option(verb, capsys):
    assert status_of([verb, "--help"]) == 0
    shown = " ".join(capsys.readouterr().out.replace("│", " ").split())
    assert "(required)" in shown
    assert "What is marked as required may come from --config instead." in shown


def test_help_loads_neither_ray_nor_torch():
    code = (
        "import sys, contextlib\n"
        "from razor_ray.cli import main\n"
        "for arguments in (['--help'], ['--version'], [], ['nosuch'], ['prune', '--help'], ['train', '--help'],\n"
        "                  ['prune', '--keep-fraction', '30', '--input', 'x', '--output', 'y']):\n"
        "    with contextlib.suppress(SystemExit):\n"
        "        main(arguments)\n"
        "assert 'ray' not in sys.modules, 'ray'\n"
        "assert 'torch' not in sys.modules, 'torch'\n"
    )
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY)}
    ended = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=60, check=False
    )
    assert ended.returncode == 0, ended.stderr[-500:]


@pytest.mark.parametrize("module", ["razor_ray", "razor_ray.cli"])
def test_as_a_module_it_gives_the_status(module):
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY)}
    command = [sys.executable, "-m", module, "prune", "--input", "x", "--output", "y", "--keep-fraction", "30"]
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)
    assert ended.returncode == 2
    assert ended.stdout == ""
    assert ended.stderr == (
        "razor-ray prune: keep_fraction must be in (0, 1], got 30. It is the fraction to keep, not a percentage: "
        "to keep 30 % pass 0.3.\n"
    )


# Flags.


@pytest.mark.parametrize(
    ("flags", "field", "value"),
    [
        (["--seed", "7"], "seed", 7),
        (["--max-quarantine-fraction", "0.05"], "max_quarantine_fraction", 0.05),
        (["--input.image-column", "img"], "input.image_column", "img"),
        (["--input.label-column", "target"], "input.label_column", "target"),
        (["--input.id-column", "name"], "input.id_column", "name"),
        (["--input.class-names", "a", "b c"], "input.class_names", ("a", "b c")),
        (["--proxy.weights", "w.safetensors"], "proxy.weights", "w.safetensors"),
        (["--proxy.arch", "my.networks:tiny"], "proxy.arch", "my.networks:tiny"),
        (["--proxy.epochs", "2"], "proxy.epochs", 2),
        (["--proxy.image-size", "32"], "proxy.image_size", 32),
        (["--proxy.image-size", "auto"], "proxy.image_size", "auto"),
        (["--proxy.learning-rate", "0.1"], "proxy.learning_rate", 0.1),
        (["--score.hardness", "margin"], "score.hardness", "margin"),
        (["--score.batch-size", "64"], "score.batch_size", 64),
        (["--score.num-workers", "2"], "score.num_workers", 2),
        (["--weigh.beta", "0.999"], "weigh.beta", 0.999),
        (["--weigh.class-floor", "0"], "weigh.class_floor", 0),
        (["--sample.clustering", "none"], "sample.clustering", "none"),
        (["--sample.tail", "0"], "sample.tail", 0),
        (["--sample.focus", "0.25"], "sample.focus", 0.25),
    ],
)
def test_flags_of_prune(flags, field, value):
    config, cluster = parse(PruneConfig, [*PRUNE, *flags])
    assert (config.input.path, config.output, config.keep_fraction) == ("in", "out", 0.3)
    assert get(config, field) == value
    assert type(get(config, field)) is type(value) or isinstance(value, int)
    plain, _ = parse(PruneConfig, PRUNE)
    assert {name for name in flat(config) if flat(config)[name] != flat(plain)[name]} <= {field}
    assert cluster == cli.ClusterOptions()


@pytest.mark.parametrize(
    ("flags", "field", "value"),
    [
        (["--eval", "held-out"], "eval.path", "held-out"),
        (["--eval.label-column", "y"], "eval.label_column", "y"),
        (["--num-workers", "4"], "num_workers", 4),
        (["--arch", "resnet9"], "model.arch", "resnet9"),
        (["--weights", "w.pt"], "model.weights", "w.pt"),
        (["--image-size", "28"], "model.image_size", 28),
        (["--epochs", "3"], "epochs", 3),
        (["--batch-size", "64"], "batch_size", 64),
        (["--learning-rate", "0.01"], "learning_rate", 0.01),
        (["--optimizer", "adamw"], "optimizer", "adamw"),
        (["--schedule", "cosine"], "schedule", "cosine"),
        (["--augment", "crop_flip"], "augment", "crop_flip"),
        (["--use-weights"], "use_weights", True),
        (["--precision", "bf16"], "precision", "bf16"),
        (["--input.label-column", "y"], "input.label_column", "y"),
        (["--seed", "3"], "seed", 3),
    ],
)
def test_flags_of_train(flags, field, value):
    config, _ = parse(TrainConfig, [*TRAIN, *flags])
    assert (config.input.path, config.output) == ("in", "out")
    assert get(config, field) == value
    plain, _ = parse(TrainConfig, TRAIN)
    assert {name for name in flat(config) if flat(config)[name] != flat(plain)[name]} == {field}


def get(config: object, name: str) -> object:
    for part in name.split("."):
        config = getattr(config, part)
    return config


def flat(config: PruneConfig | TrainConfig) -> dict[str, object]:
    found: dict[str, object] = {}
    for name, value in to_dict(config).items():
        found |= {f"{name}.{key}": v for key, v in value.items()} if isinstance(value, dict) else {name: value}
    return found


def test_without_flags_the_defaults():
    assert parse(PruneConfig, PRUNE)[0] == PruneConfig(input=InputConfig(path="in"), output="out", keep_fraction=0.3)
    assert parse(TrainConfig, TRAIN)[0] == TrainConfig(input=InputConfig(path="in"), output="out")


def test_values_after_an_equals_sign():
    config, cluster = parse(PruneConfig, ["--input=in", "--output=out", "--keep-fraction=0.3", "--address=http://h:1"])
    assert config == parse(PruneConfig, PRUNE)[0]
    assert cluster.address == "http://h:1"


def test_flags_do_not_depend_on_the_order(ran):
    assert main(["prune", "--keep-fraction", "0.3", "--output", "out", "--seed", "3", "--input", "in"]) == 0
    assert main(["prune", "--seed", "3", *PRUNE]) == 0
    assert ran[0] == ran[1]
    assert ran[0][0] == "prune"


# Configurations in files.


@pytest.fixture
def saved(tmp_path):
    config = PruneConfig(
        input=InputConfig(path="data", class_names=("a", "b")),
        output="run",
        keep_fraction=0.2,
        seed=5,
        proxy=ProxyConfig(arch="resnet9", epochs=9, image_size=32),
    )
    path = tmp_path / "config.json"
    path.write_text(json.dumps(to_dict(config)))
    return path, config


def test_a_config_file_is_the_configuration(saved):
    path, config = saved
    assert parse(PruneConfig, ["--config", str(path)])[0] == config
    assert parse(PruneConfig, ["--config", f"file://{path}"])[0] == config


def test_a_config_file_after_an_equals_sign(saved):
    path, config = saved
    assert parse(PruneConfig, [f"--config={path}"])[0] == config


def test_flags_change_a_config_file(saved):
    path, config = saved
    for arguments in (
        ["--config", str(path), "--output", "new", "--proxy.epochs", "1"],
        ["--output", "new", "--config", str(path), "--proxy.epochs", "1"],
        ["--output", "new", "--proxy.epochs", "1", "--config", str(path)],
    ):
        changed, _ = parse(PruneConfig, arguments)
        assert changed.output == "new"
        assert changed.proxy == ProxyConfig(arch="resnet9", epochs=1, image_size=32)
        assert (changed.input, changed.keep_fraction, changed.seed) == (config.input, 0.2, 5)
    changed, cluster = parse(PruneConfig, ["--config", str(path), "--input", "other", "--address", "http://h"])
    assert changed.input == InputConfig(path="other", class_names=("a", "b"))
    assert cluster.address == "http://h"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "cannot read"),
        ("", "not a PruneConfig in JSON"),
        ("[]", "PruneConfig"),
        ('{"input": {"path": "x"}, "output": "y", "keep_fraction": 30}', "to keep 30 % pass 0.3"),
        ('{"input": {"path": "x"}, "output": "y", "keep_fraction": 0.3, "epochs": 3}', "unknown setting epochs"),
    ],
)
def test_a_bad_config_file(tmp_path, content, message, capsys, ran):
    path = tmp_path / "config.json"
    if content is not None:
        path.write_text(content)
    assert main(["prune", "--config", str(path)]) == 2
    assert_one_line(capsys.readouterr().err, message)
    assert not ran


def test_a_config_flag_without_a_file(capsys):
    assert main(["prune", "--config"]) == 2
    assert_one_line(capsys.readouterr().err, "--config needs a file, such as RUN/config.json")


# Wrong requests.


def assert_one_line(shown: str, message: str) -> None:
    assert message in shown
    assert shown.startswith(("razor-ray prune: ", "razor-ray train: "))
    assert shown.count("\n") == 1, shown
    assert "Traceback" not in shown


@pytest.mark.parametrize(
    ("verb", "flags", "message"),
    [
        ("prune", ["--keep-fraction", "0"], "keep_fraction must be in (0, 1], got 0."),
        ("prune", ["--keep-fraction", "nan"], "keep_fraction must be in (0, 1], got nan."),
        ("prune", ["--keep-fraction", "-1"], "keep_fraction must be in (0, 1], got -1."),
        ("prune", ["--keep-fraction", "30"], "to keep 30 % pass 0.3."),
        ("prune", ["--seed", "-1"], "seed must be in"),
        ("prune", ["--max-quarantine-fraction", "2"], "max_quarantine_fraction must be in [0, 1], got 2"),
        ("prune", ["--input", ""], "input must name a file, a folder or a glob, got an empty path."),
        ("prune", ["--output", ""], "output must name the run's folder"),
        ("prune", ["--proxy.epochs", "0"], "proxy.epochs must be in 1..63, got 0."),
        ("prune", ["--score.batch-size", "0"], "score.batch_size must be at least 1, got 0."),
        ("prune", ["--weigh.quantile", "2"], "weigh.quantile must be in [0, 1], got 2"),
        ("prune", ["--sample.tail", "1"], "It is a fraction of the class."),
        (
            "prune",
            ["--input.class-names", "cat", "dog", "cat"],
            "input.class_names must differ from each other, got cat more than once.",
        ),
        ("prune", ["--input.class-names"], "input.class_names"),  # as of an empty shell variable
        ("train", ["--epochs", "0"], "epochs must be at least 1, got 0."),
        ("train", ["--label-smoothing", "1"], "label_smoothing must be in [0, 1), got 1"),
        ("train", ["--num-workers", "0"], "num_workers must be at least 1, got 0."),
        ("train", ["--image-size", "2"], "image_size must be at least"),
    ],
)
def test_values_out_of_range_are_one_line(verb, flags, message, capsys, ran):
    arguments = PRUNE if verb == "prune" else TRAIN
    assert status_of([verb, *arguments, *flags]) == 2
    assert_one_line(capsys.readouterr().err, message)
    assert not ran


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["prune", *PRUNE, "--keep-fraction", "third"], "--keep-fraction"),
        (["prune", *PRUNE, "--seed", "1.5"], "--seed"),
        (["prune", *PRUNE, "--score.hardness", "harder"], "--score.hardness"),
        (["prune", *PRUNE, "--keep-fractoin", "0.3"], "--keep-fractoin"),
        (["prune", "--input", "in", "--output", "out"], "--keep-fraction"),
        (["prune", "--output", "out", "--keep-fraction", "0.3"], "--input"),
        (["prune", *PRUNE, "--eval", "x"], "--eval"),
        (["train", *TRAIN, "--keep-fraction", "0.3"], "--keep-fraction"),
        (["prune", *PRUNE, "word"], "word"),
    ],
)
def test_what_cannot_be_parsed_names_the_flag(arguments, message, capsys, ran):
    assert status_of(arguments) == 2
    shown = capsys.readouterr()
    assert message in shown.err
    assert "Traceback" not in shown.err
    assert shown.out == ""
    assert not ran


# How a run ends.


def raising(error: BaseException, module=cli):
    """What raises an error in a module, as `blame` has it."""

    def run_here(verb, config):
        raise error

    return FunctionType(run_here.__code__, vars(module), closure=run_here.__closure__)


@pytest.mark.parametrize(
    ("error", "status", "line"),
    [
        (ValueError("shard a.parquet cannot be read"), 2, "razor-ray prune: shard a.parquet cannot be read\n"),
        (
            OSError("the network is gone"),
            1,
            "razor-ray prune: the network is gone. Once that is mended, the same command goes on from what is "
            "finished.\n",
        ),
        (FileNotFoundError("no proxy.pt"), 1, "razor-ray prune: no proxy.pt\n"),
        (
            OSError(28, "No space left on device", "/run/out"),
            1,
            "razor-ray prune: no space left on the disk (/run/out). Make room, and the same command goes on from "
            "what is finished.\n",
        ),
        (KeyboardInterrupt(), 130, "\nrazor-ray prune: stopped. The same command goes on from what is finished.\n"),
        (KeyboardInterrupt(15), 143, "\nrazor-ray prune: stopped. The same command goes on from what is finished.\n"),
    ],
)
def test_ends_of_a_run(error, status, line, monkeypatch, capsys):
    monkeypatch.setattr(cli, "_run_here", raising(error))
    assert main(["prune", *PRUNE]) == status
    assert capsys.readouterr().err == line


def test_a_full_disk_without_a_name(monkeypatch, capsys):
    monkeypatch.setattr(cli, "_run_here", raising(OSError(28, "Error writing bytes to file")))  # as pyarrow raises it
    assert main(["prune", *PRUNE]) == 1
    assert "no space left on the disk" in capsys.readouterr().err


def test_a_full_disk_in_a_task_is_explained_too(monkeypatch, capsys):
    # Ray hands an error of a task on as an OSError of its own whose text is the whole remote traceback.
    from ray.exceptions import RayTaskError

    cause = OSError(28, "No space left on device", "/run/out")
    error = RayTaskError("write", "Traceback (most recent call last): ...", cause).as_instanceof_cause()
    assert isinstance(error, OSError)
    monkeypatch.setattr(cli, "_run_here", raising(error))
    assert main(["prune", *PRUNE]) == 1
    assert_one_line(capsys.readouterr().err, "no space left on the disk (/run/out)")


def test_a_fault_of_ours_keeps_its_traceback(monkeypatch):
    monkeypatch.setattr(cli, "_run_here", raising(RuntimeError("samples were lost")))
    with pytest.raises(RuntimeError, match="samples were lost"):
        main(["prune", *PRUNE])


def test_so_does_one_of_other_code(monkeypatch):
    """Else what numpy or Arrow could not do with what we gave them would pass for a mistake of the user's."""
    monkeypatch.setattr(cli, "_run_here", raising(ValueError("operands could not be broadcast together"), np))
    with pytest.raises(ValueError, match="operands could not be broadcast"):
        main(["prune", *PRUNE])


@pytest.mark.parametrize(
    ("file", "is_ours"),
    [
        ("/home/me/razor_ray/razor_ray/stages/score.py", True),
        ("/usr/lib/python3.12/site-packages/razor_ray/shards.py", True),
        ("/home/me/razor_ray/.venv/lib/python3.12/site-packages/numpy/_core/numeric.py", False),
        ("/home/me/razor_ray/tests/test_cli.py", False),
        ("/home/me/my_razor_ray/shards.py", False),
    ],
)
def test_whose_error_of_a_task_it_is(file, is_ours):
    from ray.exceptions import RayTaskError

    text = f'Traceback:\n  File "/x/razor_ray/cli.py", line 1, in f\n  File "{file}", line 7, in g\nValueError: no'
    assert blame.is_ours(RayTaskError("g", text, ValueError("no")).as_instanceof_cause()) is is_ours


@pytest.mark.parametrize(("file", "is_raised"), [("/x/razor_ray/shards.py", True), ("/x/torch/functional.py", False)])
def test_whose_error_of_a_training_worker_it_is(file, is_raised):
    """Ray gives it back without its traceback, which would be that of whoever raises it here."""
    from razor_ray.stages import train

    class FailedError(Exception):
        def __init__(self, failure):
            super().__init__(f'[Rank 0]\n  File "/x/ray/worker.py", line 1, in f\n  File "{file}", line 7, in g')
            self.worker_failures = {0: failure}

    for failure, is_for_the_user in ((ValueError("no"), is_raised), (OSError("full"), True), (KeyError("x"), False)):
        failed = FailedError(failure)
        assert train._cause(failed) is (failure if is_for_the_user else failed)


def test_a_run_here_returns_0(ran):
    assert main(["train", *TRAIN, "--epochs", "2"]) == 0
    assert ran == [("train", TrainConfig(input=InputConfig(path="in"), output="out", epochs=2))]


def test_threads_wait_asleep(ran, monkeypatch):
    monkeypatch.delenv("OMP_WAIT_POLICY", raising=False)
    main(["prune", *PRUNE])
    assert os.environ["OMP_WAIT_POLICY"] == "PASSIVE"
    monkeypatch.setenv("OMP_WAIT_POLICY", "ACTIVE")
    main(["prune", *PRUNE])
    assert os.environ["OMP_WAIT_POLICY"] == "ACTIVE"


def test_who_has_seen_enough_of_the_help_gets_no_error():
    reading, writing = os.pipe()
    os.close(reading)  # as `| head` does, sooner or later
    command = [sys.executable, "-m", "razor_ray.cli", "prune", "--help"]
    found = subprocess.run(command, stdout=writing, stderr=subprocess.PIPE, text=True, timeout=120)
    os.close(writing)
    assert (found.returncode, found.stderr) == (128 + signal.SIGPIPE, "")


# Submitted to a cluster.


@pytest.fixture
def cluster(monkeypatch, ran):
    """A cluster that takes every job, and what it was asked."""
    found = SimpleNamespace(status="SUCCEEDED", states=[], exit_codes=[], jobs=0, address=None, job=None, refuses=None)
    found.breaks, found.forgets, found.logs, found.takes_none = [], [], [], []

    class Client:
        def __init__(self, address, *arguments, **options):
            if found.refuses:
                raise found.refuses
            found.address = address

        def submit_job(self, **job):
            if found.takes_none:
                raise found.takes_none.pop(0)
            found.job = job
            found.jobs += 1
            return "raysubmit_1"

        async def tail_job_logs(self, job):
            if found.breaks:
                raise found.breaks.pop(0)
            for text in found.logs.pop(0) if found.logs else ["first line\n", f"last line of {job}\n"]:
                if isinstance(text, Exception):
                    raise text
                yield text

        def get_job_info(self, job):
            if found.forgets:
                raise found.forgets.pop(0)
            if found.states:
                return SimpleNamespace(status=ray.job_submission.JobStatus(found.states.pop(0)))
            code = found.exit_codes.pop(0) if found.exit_codes else None
            return SimpleNamespace(status=ray.job_submission.JobStatus(found.status), driver_exit_code=code)

    import ray.job_submission

    monkeypatch.setattr(ray.job_submission, "JobSubmissionClient", Client)
    found.ran_here = ran
    return found


def submitted(job: dict) -> tuple[list[str], list[str]]:
    words = shlex.split(job["entrypoint"])
    assert words[:3] == ["python", "-m", "razor_ray.cli"]
    return words[3:4], words[4:]


ODD = ["--input", "s3://b/a b/*.parquet", "--output", "s3://b/run's", "--keep-fraction", "0.3"]


@pytest.mark.parametrize(
    "options",
    [
        ["--address", "http://head:8265"],
        ["--address=http://head:8265"],
        ["--address", "http://head:8265", "--working-dir", "."],
        ["--working-dir=.", "--address=http://head:8265"],
        ["--address", "http://head:8265", "--working_dir", "."],
        ["--working_dir=.", "--address", "http://head:8265"],
    ],
)
@pytest.mark.parametrize("is_first", [True, False])
def test_a_job_is_the_same_command_without_the_address(cluster, options, is_first, capsys):
    arguments = [*ODD, "--input.class-names", "cat", "big dog", "$HOME"]
    expected, _ = parse(PruneConfig, arguments)
    assert main(["prune", *options, *arguments] if is_first else ["prune", *arguments, *options]) == 0
    assert cluster.address == "http://head:8265"
    verb, rest = submitted(cluster.job)
    assert verb == ["prune"]
    assert not [word for word in rest if "address" in word or "working" in word]
    config, options_there = parse(PruneConfig, rest)
    assert config == expected
    assert options_there == cli.ClusterOptions()
    assert not cluster.ran_here
    has_folder = any("working" in word for word in options)
    assert cluster.job["runtime_env"] == ({"working_dir": "."} if has_folder else None)
    shown = capsys.readouterr()
    assert shown.out == "first line\nlast line of raysubmit_1\n"
    assert "raysubmit_1 succeeded" in shown.err


def test_a_training_job(cluster):
    arguments = [*TRAIN, "--eval", "held-out", "--num-workers", "4", "--use-weights"]
    assert main(["train", "--address", "auto", *arguments]) == 0
    verb, rest = submitted(cluster.job)
    assert verb == ["train"]
    assert parse(TrainConfig, rest)[0] == parse(TrainConfig, arguments)[0]


@pytest.mark.parametrize(("status", "expected"), [("SUCCEEDED", 0), ("FAILED", 1), ("STOPPED", 1)])
def test_the_status_is_the_jobs(cluster, status, expected, capsys):
    cluster.status = status
    assert main(["prune", *PRUNE, "--address", "http://h"]) == expected
    assert f"raysubmit_1 {status.lower()}" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("exit_codes", "restarts", "jobs", "expected"),
    [
        ([1, 1, 1], 2, 3, 1),  # never succeeds
        ([2], 2, 1, 2),  # refused: it would be again
        ([-9, None, 2], 5, 3, 2),  # killed, lost with its node, then refused
        ([137], 0, 1, 137),
    ],
)
def test_a_job_that_failed_is_submitted_again(cluster, exit_codes, restarts, jobs, expected, capsys):
    cluster.status, cluster.exit_codes = "FAILED", list(exit_codes)
    arguments = ["--address", "http://h", "--max-restarts", str(restarts)]
    assert main(["prune", *PRUNE, *arguments]) == expected
    assert cluster.jobs == jobs
    assert capsys.readouterr().err.count("restart ") == jobs - 1


@pytest.mark.parametrize(("restarts", "expected"), [(0, 1), (1, 0)])
def test_a_job_that_the_cluster_does_not_take(cluster, restarts, expected, capsys):
    cluster.takes_none = [RuntimeError("No available agent to submit job, please try again later.")]
    assert main(["prune", *PRUNE, "--address", "http://h", "--max-restarts", str(restarts)]) == expected
    assert cluster.jobs == restarts
    told = capsys.readouterr().err.splitlines()[0]
    assert told == "http://h has not taken the job: No available agent to submit job, please try again later."


def test_a_folder_that_cannot_be_shipped(cluster, capsys):
    cluster.takes_none = [ValueError("directory /nowhere must be an existing directory")]
    assert main(["prune", *PRUNE, "--address", "http://h", "--working-dir", "/nowhere", "--max-restarts", "3"]) == 2
    assert_one_line(capsys.readouterr().err, "cannot ship --working-dir /nowhere: directory /nowhere must be")
    assert cluster.jobs == 0


def test_a_job_that_a_person_stopped_is_not_submitted_again(cluster):
    cluster.status = "STOPPED"
    assert main(["prune", *PRUNE, "--address", "http://h", "--max-restarts", "3"]) == 1
    assert cluster.jobs == 1


def test_restarts_are_of_jobs(capsys, ran):
    assert main(["prune", *PRUNE, "--max-restarts", "3"]) == 2
    assert_one_line(capsys.readouterr().err, "name the cluster with --address")
    assert not ran


def test_a_job_is_followed_until_it_has_ended(cluster, monkeypatch, capsys):
    """The connection ends when a proxy in between has had enough; the job does not."""
    monkeypatch.setattr(cli, "_FOLLOW_AGAIN_SECONDS", 0)
    cluster.states = ["RUNNING", "PENDING"]
    assert main(["prune", *PRUNE, "--address", "http://head:8265", "--max-restarts", "2"]) == 0
    assert cluster.jobs == 1
    assert capsys.readouterr().out == "first line\nlast line of raysubmit_1\n"


def test_no_line_of_a_job_is_shown_twice(cluster, monkeypatch, capsys):
    """Every connection gives the log from its beginning, cut as the server happens to read it."""
    monkeypatch.setattr(cli, "_FOLLOW_AGAIN_SECONDS", 0)
    cluster.states = ["RUNNING"] * 3
    cluster.logs = [
        [],
        ["one\n", "two\nthr", ConnectionResetError("by peer")],
        ["one\n", RuntimeError("closed abnormally (1006)")],
        ["one\ntwo\nthr"],
        ["one\ntwo\nthree\nfour\n", "four\n"],
        ["one\ntwo\nthree\nfour\n", "fo", "ur\n", "last\n"],
    ]
    assert main(["prune", *PRUNE, "--address", "http://head:8265"]) == 0
    assert capsys.readouterr().out == "one\ntwo\nthree\nfour\nfour\nlast\n"
    assert not cluster.logs and cluster.jobs == 1


def test_a_job_is_followed_through_failures_of_the_connection(cluster, monkeypatch, capsys):
    monkeypatch.setattr(cli, "_FOLLOW_AGAIN_SECONDS", 0)
    cluster.breaks = [RuntimeError("closed abnormally (1006)"), aiohttp.ServerDisconnectedError(), TimeoutError()]
    cluster.forgets = [ConnectionResetError("by peer")]
    assert main(["prune", *PRUNE, "--address", "http://head:8265", "--max-restarts", "2"]) == 0
    assert cluster.jobs == 1
    assert not cluster.breaks
    assert not cluster.forgets
    assert capsys.readouterr().out == "first line\nlast line of raysubmit_1\n"


def test_a_job_that_cannot_be_followed_any_more_is_not_submitted_again(cluster, monkeypatch, capsys):
    monkeypatch.setattr(cli, "_FOLLOW_AGAIN_SECONDS", 0)
    cluster.breaks = [RuntimeError("closed abnormally (1006)")] * 99
    with pytest.raises(SystemExit) as stopped:
        main(["prune", *PRUNE, "--address", "http://head:8265", "--max-restarts", "2"])
    assert stopped.value.code == 1
    assert cluster.jobs == 1
    assert len(cluster.breaks) == 79
    told = capsys.readouterr().err
    assert "lost the connection to http://head:8265: closed abnormally (1006)" in told
    assert "raysubmit_1 goes on." in told


def test_who_stops_following_a_job_is_told_that_it_goes_on(cluster, monkeypatch, capsys):
    def stop(client, job):
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, "_follow_to_the_end", stop)
    with pytest.raises(SystemExit) as stopped:
        main(["prune", *PRUNE, "--address", "http://head:8265", "--max-restarts", "2"])
    assert stopped.value.code == 130
    assert cluster.jobs == 1
    told = capsys.readouterr().err
    assert "raysubmit_1 goes on." in told
    assert "ray job stop --address http://head:8265 raysubmit_1" in told
    assert "stopped." not in told


def test_a_job_says_what_it_is(cluster):
    assert main(["prune", *PRUNE, "--address", "http://h"]) == 0
    config, _ = parse(PruneConfig, PRUNE)
    assert cluster.job["metadata"] == {
        "razor_ray": cli.razor_ray.__version__,
        "verb": "prune",
        "output": config.output,
        "configuration": cli.configuration.digest(config),
    }


def test_a_wrong_request_is_not_submitted(cluster, capsys):
    assert main(["prune", *PRUNE, "--keep-fraction", "30", "--address", "http://h"]) == 2
    assert cluster.job is None
    assert_one_line(capsys.readouterr().err, "to keep 30 % pass 0.3")


@pytest.mark.parametrize("error", [ConnectionError("refused"), RuntimeError("version 1.0")])
def test_a_cluster_that_is_not_there(cluster, error, capsys):
    cluster.refuses = error
    assert main(["prune", *PRUNE, "--address", "http://h:1"]) == 2
    assert_one_line(capsys.readouterr().err, f"cannot reach a Ray cluster at http://h:1: {error}")


def test_a_config_file_goes_along(cluster, saved):
    # The file is here, the job runs there: the settings must reach it all the same.
    path, config = saved
    assert main(["prune", "--config", str(path), "--seed", "6", "--address", "http://h"]) == 0
    _, rest = submitted(cluster.job)
    path.unlink()
    there, _ = parse(PruneConfig, rest)
    assert to_dict(there) == to_dict(config) | {"seed": 6}


# Stands for a native thread that outlives `ray.shutdown` and meets a destructor: C's own exit handlers end in an abort.
TORN_DOWN = "import ctypes, runpy, sys; c = ctypes.CDLL(None); c.__cxa_atexit(c.abort, None, None); sys.argv[:1] = []; "


@pytest.mark.parametrize(
    ("end", "status"),
    [
        ("sys.exit(0)", -signal.SIGABRT),  # without which the others would show nothing
        ("runpy.run_module('razor_ray.cli', run_name='__main__')", 0),
        (f"import importlib; importlib.import_module('{MODULE}').{FUNCTION}()", 0),
    ],
)
def test_a_process_that_is_through_ends_without_tearing_down_what_is_loaded(end, status):
    ended = subprocess.run(
        [sys.executable, "-c", TORN_DOWN + end, "razor-ray", "--version"],
        capture_output=True,
        text=True,
        cwd=REPOSITORY,
    )
    assert ended.returncode == status, ended.stderr
    assert ended.stdout == ("" if status else f"{razor_ray.__version__}\n")


@pytest.mark.parametrize("verb", ["prune", "train", "compare"])
def test_a_job_script_ends_likewise(verb, tmp_path):
    end = f"runpy.run_path('jobs/{verb}.py', run_name='__main__')"
    command = [sys.executable, "-c", TORN_DOWN + end, verb, "--config", f"{tmp_path}/nothing"]
    ended = subprocess.run(command, capture_output=True, text=True, cwd=REPOSITORY)
    assert ended.returncode == 2, ended.stderr
    assert f"razor-ray {verb}: cannot read" in ended.stderr
