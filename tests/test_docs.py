"""What the documents tell a reader to type: options that exist, links that lead somewhere, Python that runs."""

from __future__ import annotations

import contextlib
import io
import re
import shlex
from pathlib import Path

import numpy as np
import pytest
import tyro

from jobs import benchmark, experiments
from razor_ray import cli, pipeline, sources
from razor_ray.config import CompareConfig, InputConfig, PruneConfig, TrainConfig
from tests.conftest import png, readme_python

REPOSITORY = Path(__file__).parents[1]
DOCUMENTS = [REPOSITORY / "README.md", REPOSITORY / "CONTRIBUTING.md", *sorted((REPOSITORY / "docs").glob("*.md"))]
KINDS = {"prune": PruneConfig, "train": TrainConfig, "compare": CompareConfig}
COMMAND = re.compile(r"(?:\S*/)?razor-ray (?:prune|train|compare) .*|(?:\S*/)?python jobs/\w+\.py .*")


def commands(text: str) -> list[str]:
    """Commands with options, of blocks and of running text, but those that leave something out by dots."""
    blocks = [block for of, block in re.findall(r"^```(\w*)\n(.*?)^```$", text, re.M | re.S) if not of]
    joined = [line for block in blocks for line in re.sub(r"\\\n\s*", "", block).splitlines()]
    outside = re.sub(r"^```.*?^```$", "", text, flags=re.M | re.S)
    inline = [" ".join(span.split()) for span in re.findall(r"`([^`]+)`", outside)]
    found = [match for line in joined + inline if (match := COMMAND.search(line))]
    return [match.group() for match in found if "..." not in match.group() and "--" in match.group()]


def test_every_command_in_the_documents_is_one():
    found = {path.name: commands(path.read_text()) for path in DOCUMENTS}
    assert len(found["README.md"]) >= 9
    assert len(found["experiments.md"]) >= 12
    assert len(found["performance.md"]) >= 7
    for name, lines in found.items():
        for line in lines:
            words = shlex.split(line, comments=True)
            program, arguments = words[0], words[1:]
            with contextlib.redirect_stderr(io.StringIO()) as told:
                try:
                    understand(Path(program).name, arguments)
                except (SystemExit, ValueError) as error:
                    if getattr(error, "code", None) == 0:  # --help
                        continue
                    pytest.fail(f"{name}: {line}\n{error}\n{told.getvalue()}")


def understand(program: str, arguments: list[str]) -> None:
    """As the program would, without doing it."""
    if program == "razor-ray":
        cli.parse(KINDS[arguments[0]], arguments[1:])
    elif arguments[0] in ("jobs/prune.py", "jobs/train.py", "jobs/compare.py"):
        cli.parse(KINDS[Path(arguments[0]).stem], arguments[1:])
    else:
        verbs = {"jobs/experiments.py": experiments.Verb, "jobs/benchmark.py": benchmark.Verb}
        tyro.cli(verbs[arguments[0]], args=arguments[1:])


@pytest.mark.parametrize(
    "line", ["razor-ray prune --inptu x --output y --keep-fraction 0.3", "python jobs/nosuch.py --a"]
)
def test_what_is_no_command_would_be_found(line):
    (found,) = commands(f"Text.\n\n```\n$ {line}   # so\n```\n")
    with pytest.raises((SystemExit, ValueError, KeyError)):
        program, *arguments = shlex.split(found, comments=True)
        understand(program, arguments)


def test_links_lead_somewhere():
    for path in DOCUMENTS:
        links = re.findall(r"\]\(([^)#:]+)\)", path.read_text())
        assert [link for link in links if not (path.parent / link).exists()] == [], path.name


def test_a_run_from_python_is_what_the_readme_has(monkeypatch, capsys):
    """What is run itself is what the commands run; here that this is how it is asked for."""
    asked = []
    monkeypatch.setattr(pipeline, "prune", lambda config: asked.append(config) or {"counts": {"kept": 3}})
    exec(readme_python("pipeline import prune"), {})
    command = ["--input", "photos/train", "--output", "runs/photos-longer", "--keep-fraction", "0.3"]
    assert asked == [cli.parse(PruneConfig, [*command, "--proxy.epochs", "10"])[0]]
    assert capsys.readouterr().out == "{'kept': 3}\n"


def test_the_method_from_python_runs_as_the_readme_has_it(capsys):
    exec(readme_python("class_quotas"), {})
    quotas = [int(word) for word in re.findall(r"\d+", capsys.readouterr().out)]
    assert len(quotas) == 2
    assert sum(quotas) == 3
    exec(readme_python("gamma_razor"), {})
    assert capsys.readouterr().out == "300\n"


def test_images_of_a_list_of_paths_are_written_as_the_documentation_has_it(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "photos").mkdir()
    for number in range(450):
        (tmp_path / "photos" / f"{number}.png").write_bytes(png(np.full((8, 8), number % 256, np.uint8)))
    lines = [f"{number}.png,{number % 3}" for number in range(450)]
    (tmp_path / "labels.csv").write_text("\n".join(["filename,label", *lines]))
    text = (Path(__file__).parents[1] / "docs" / "inputs.md").read_text()
    (code,) = re.findall(r"^```python\n(.*?)^```$", text, re.M | re.S)
    exec(code, {})
    config = InputConfig(path=str(tmp_path / "photos.parquet"), id_column="name")
    source = sources.find(config)
    facts = sources.inspect(source, 0, config)
    assert (facts.num_samples, facts.label_counts) == (450, {"0": 150, "1": 150, "2": 150})
    assert (facts.image_dimensions[0], facts.group_rows) == ((8, 8), (200, 200, 50))
