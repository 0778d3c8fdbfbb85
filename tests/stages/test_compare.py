"""Methods side by side on real images, through the command line."""

import itertools
import json
import os
import re
import shutil
import signal
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.fs as pafs
import pyarrow.parquet as pq
import pytest
import torch

from razor_ray import model, training, weights
from razor_ray.cli import main
from razor_ray.config import CompareConfig, InputConfig, ModelConfig, PruneConfig, SampleConfig, WeighConfig, from_dict
from razor_ray.run_store import RunStore
from razor_ray.selection import Samples, gamma_razor
from razor_ray.stages import catalog as catalogs
from razor_ray.stages import cells, reuse
from razor_ray.stages import compare as comparing
from tests.conftest import write_shards

pytestmark = pytest.mark.usefixtures("ray_session")


@pytest.fixture(scope="module")
def run(tmp_path_factory, digits):
    """A finished run over 300 digits, whose proxy was given; 100 more are held out."""
    folder = tmp_path_factory.mktemp("compare")
    torch.manual_seed(0)
    (folder / "proxy.safetensors").write_bytes(model.save_weights(model.build("resnet9", 10)))
    write_shards(digits.slice(0, 300), folder / "in", 3)
    write_shards(digits.slice(300), folder / "test", 1)
    options = ["--proxy.weights", f"{folder}/proxy.safetensors", "--keep-fraction", "0.3", "--score.num-workers", "1"]
    assert main(["prune", "--input", f"{folder}/in", "--output", f"{folder}/run", *options]) == 0
    return folder


SMALL = ["--epochs", "2", "--augment", "none", "--keep-fractions", "0.2", "0.5"]


def test_cells_are_trained_once_and_told(run, tmp_path, capfd, monkeypatch):
    paths = ["--run", f"{run}/run", "--output", f"{tmp_path}/out", "--eval", f"{run}/test"]
    arguments = ["compare", *paths, *SMALL, "--methods", "razor", "random", "--seeds", "0", "1"]
    assert main(arguments) == 0
    shown = capfd.readouterr()
    assert "cannot be told from it" in shown.out or "is the best" in shown.out
    assert (tmp_path / "out" / "compare.md").read_text() in shown.out
    table = pq.read_table(tmp_path / "out" / "compare.parquet")
    rows = {(row["method"], row["keep_fraction"], row["seed"]): row for row in table.to_pylist()}
    assert set(rows) == {(m, f, s) for m in ("razor", "random") for f in (0.2, 0.5) for s in (0, 1)} | {
        ("all", 1.0, seed) for seed in (0, 1)
    }
    for (_, fraction, _), row in rows.items():
        assert row["num_kept"] == weights.budget(300, fraction)
        assert row["num_steps"] == 2 * -(-row["num_kept"] // 32)
        assert 0 <= row["worst_recall"] <= row["accuracy"] <= 1
        assert row["macro_recall"] == pytest.approx(np.mean(row["recall"]))
        right = np.unpackbits(np.frombuffer(row["right"], np.uint8), count=row["num_eval"])
        assert right.mean() == pytest.approx(row["accuracy"])
        of_class = pq.read_table(run / "test")["label"].to_numpy()
        assert [right[of_class == label].mean() for label in range(10)] == pytest.approx(row["recall"])
    drawn = (tmp_path / "out" / "compare.svg").read_text()
    assert drawn.startswith("<svg")
    assert "stroke-dasharray" in drawn and ">all samples<" in drawn  # the line that they are to reach
    for method, fraction in itertools.product(("razor", "random"), (0.2, 0.5)):
        accuracy = np.mean([rows[method, fraction, seed]["accuracy"] for seed in (0, 1)])
        assert f">{method}, {100 * fraction:g} %: {100 * accuracy:.2f}<" in drawn
    num_steps = sum(row["num_steps"] for row in rows.values())
    assert re.search(rf"^compare   {num_steps:,} steps, .*; 10 of 10 trainings$", shown.err, re.MULTILINE)
    # What is done is not done again; a cell that is lost is, and comes out the same.
    (tmp_path / "out" / "cells" / "razor-0.2-epochs-1.json").unlink()
    trained = []
    train_cells = comparing.train_cells

    def spy(config, missing, data, folder):
        trained.extend(cell.name for cell in missing)
        return train_cells(config, missing, data, folder)

    monkeypatch.setattr(comparing, "train_cells", spy)
    assert main(arguments) == 0
    assert trained == ["razor-0.2-epochs-1"]
    told = capfd.readouterr()
    assert "compare   9 of 10 trainings done before, skipped\n" in told.err
    assert re.search("^compare .*; 10 of 10 trainings$", told.err, re.MULTILINE)
    assert "Not complete" not in told.out
    again = pq.read_table(tmp_path / "out" / "compare.parquet")
    untimed = [name for name in table.column_names if "seconds" not in name]
    assert again.select(untimed).equals(table.select(untimed))
    # More may be asked for later; another training may not.
    assert main([*arguments, "--budgets", "epochs", "steps", "--methods", "ccs:tail=0.2", "--seeds", "0"]) == 0
    assert len(trained) == 1 + 4
    told = pq.read_table(tmp_path / "out" / "compare.parquet")
    assert told.num_rows == table.num_rows + 4  # what was asked for before stands beside it
    assert set(told["method"].to_pylist()) == {"all", "razor", "random", "ccs:tail=0.2"}
    steps = json.loads((tmp_path / "out" / "cells" / "ccs-tail=0.2-0.2-steps-0.json").read_text())
    assert steps["num_steps"] == rows["all", 1.0, 0]["num_steps"]
    assert main([*arguments, "--epochs", "3"]) == 2
    assert "epochs: 3 here, 2 there" in capfd.readouterr().err


def data_of(run):
    """What cells share, with pixels that are noise: the labels cannot be learned, only fitted."""
    samples, _ = comparing.read_samples(RunStore(f"{run}/run"))
    pixels = np.random.default_rng(0).integers(0, 256, (300, 32, 32, 3), np.uint8)
    return cells.Data(samples, pixels, pixels[:50], samples.label[:50], "lenet", 10, 32)


def folder_at(path, seconds=0.0):
    """A comparison's folder, in which a cell keeps its state after every pass over its images."""
    path.mkdir(exist_ok=True)
    (path / "config.json").touch()
    return cells.Folder(pafs.LocalFileSystem(), str(path), seconds)


def untimed(row):
    """What is the same whenever and wherever a cell is trained."""
    return {name: value for name, value in row.items() if "seconds" not in name}


def test_steps_are_told_of_while_a_cell_is_trained(run, tmp_path):
    for epochs, budget, expected in (
        (1, "epochs", [2]),  # 60 of 300 samples, in batches of 32
        (5, "epochs", [10]),
        (11, "epochs", [10, 10, 2]),
        (3, "steps", [10, 10, 10]),  # ten steps for an epoch of all
    ):
        config = CompareConfig(run="run", output="out", epochs=epochs, augment="none")
        cell = cells.Cell("random", 0.2, budget, 0)
        folder = folder_at(tmp_path, seconds=3600)
        *told, row = cells._train_cell(cell, config, data_of(run), folder, 1)
        assert told == [cells.Steps(count) for count in expected]
        assert sum(expected) == row["num_steps"]
        assert (row["num_kept"], row["method"]) == (60, "random")
        assert not (tmp_path / "cells").exists()  # it did not take long enough for a state


def test_a_cell_that_is_begun_again_goes_on(run, tmp_path, monkeypatch):
    config = CompareConfig(run="run", output="out", epochs=20, augment="crop", precision="float32")
    cell, data, folder = cells.Cell("random", 0.2, "epochs", 0), data_of(run), folder_at(tmp_path)
    made = []
    step = training.Trainer.step
    monkeypatch.setattr(training.Trainer, "step", lambda self, *rest: made.append(0) or step(self, *rest))

    def attempt(cell=cell, config=config, threads=1):
        made.clear()
        *told, row = cells._train_cell(cell, config, data, folder, threads)
        assert [steps.count for steps in told] == [10, 10, 10, 10]  # whoever made them
        return len(made), [steps.is_earlier for steps in told], untimed(row), row["seconds"]

    path = tmp_path / "cells" / f"{cell.name}.pt"
    num_steps, is_earlier, expected, _ = attempt()
    assert (num_steps, is_earlier) == (40, [False] * 4)
    path.unlink()

    def interrupt():
        interrupted = cells._train_cell(cell, config, data, folder, 1)
        assert [next(interrupted).count for _ in range(2)] == [10, 10]
        interrupted.close()
        return path.read_bytes()

    state = interrupt()  # of the nine passes of two steps that had ended when the twentieth step was told of
    assert attempt()[:3] == (22, [True, False, False, False], expected)
    # Seconds are of all attempts.
    path.write_bytes(state)
    spent = torch.load(path, weights_only=True)
    torch.save(spent | {"spent": 1000.0}, path)
    assert 1000 < attempt()[3] < 1100
    # What is another training's, or was not written to its end, is not gone on from.
    for content in (state[: len(state) // 2], b""):
        path.write_bytes(content)
        assert attempt()[:3] == (40, [False] * 4, expected)
    path.write_bytes(state)
    assert attempt(config=replace(config, precision="bf16"))[0] == 40
    path.write_bytes(state)
    assert attempt(threads=2)[0] == 40
    path.write_bytes(state)
    with monkeypatch.context() as patch:
        patch.setattr(comparing.model, "build", lambda arch, num_classes: model.ResNet9(num_classes, width=2))
        made.clear()
        assert len(list(cells._train_cell(cell, config, data, folder, 1))) == 5
        assert len(made) == 40  # the name is the same, the network is not
    path.write_bytes(state)
    other = replace(cell, seed=1)
    path.rename(tmp_path / "cells" / f"{other.name}.pt")
    assert attempt(cell=other)[0] == 40


def test_a_comparison_that_is_stopped_goes_on(run, tmp_path, capfd, monkeypatch):
    options = ["--epochs", "20", "--keep-fractions", "0.2", "--methods", "razor", "--seeds", "0", "--no-train-on-all"]
    arguments = ["compare", "--run", f"{run}/run", "--eval", f"{run}/test", *options]
    assert main([*arguments, "--output", f"{tmp_path}/whole"]) == 0
    monkeypatch.setattr(comparing, "_SECONDS_BETWEEN_STATES", 0.0)
    train_cells = comparing.train_cells
    signs = []

    def stopped(*arguments):
        for cell, found in train_cells(*arguments):
            yield cell, found
            signs.append(found)
            if len(signs) == 3:
                raise KeyboardInterrupt

    monkeypatch.setattr(comparing, "train_cells", stopped)
    arguments += ["--output", f"{tmp_path}/out"]
    assert main(arguments) == 130
    cells = tmp_path / "out" / "cells"
    assert not (tmp_path / "out" / "compare.md").exists()
    assert [path.name for path in cells.iterdir() if path.name[0] != "_"] == ["razor-0.2-epochs-0.pt"]
    (cells / "_razor-0.2-epochs-0.pt.0123456789ab").touch()  # of a worker that was killed while it wrote
    assert main(arguments) == 0
    *steps, row = signs[3:]
    assert [found.count for found in steps] == [10, 10, 10, 10]
    assert steps[0].is_earlier
    found, expected = (
        json.loads((tmp_path / of / "cells" / "razor-0.2-epochs-0.json").read_text()) for of in ("out", "whole")
    )
    assert untimed(found) == untimed(expected) == untimed(row)
    assert [path.name for path in cells.iterdir()] == ["razor-0.2-epochs-0.json"]


def test_a_node_that_does_not_see_the_output_trains_nothing(run, tmp_path):
    folder = folder_at(tmp_path)
    (tmp_path / "config.json").unlink()
    cell = cells.Cell("random", 0.2, "epochs", 0)
    with pytest.raises(ValueError, match="does not see the output"):
        next(cells._train_cell(cell, CompareConfig(run="run", output="out"), data_of(run), folder, 1))


def die_once(cell, config, data, folder, threads):
    """A cell whose worker is killed after its third sign of life, but for its second attempt."""
    attempt = Path(folder.root, "attempt")
    is_first = not attempt.exists()
    num_earlier = 0
    for number, found in enumerate(train_cell(cell, config, data, folder, threads), 1):
        num_earlier += isinstance(found, cells.Steps) and found.is_earlier
        attempt.write_text(f"{num_earlier} signs of an earlier attempt")
        yield found
        if is_first and number == 3:
            os.kill(os.getpid(), signal.SIGKILL)


train_cell = cells._train_cell


def test_a_cell_whose_worker_dies_goes_on_and_comes_out_the_same(run, tmp_path, capfd, monkeypatch):
    options = ["--epochs", "20", "--keep-fractions", "0.2", "--methods", "razor", "--seeds", "0", "--no-train-on-all"]
    arguments = ["compare", "--run", f"{run}/run", "--eval", f"{run}/test", *options]
    assert main([*arguments, "--output", f"{tmp_path}/whole"]) == 0
    monkeypatch.setattr(comparing, "_SECONDS_BETWEEN_STATES", 0.0)
    monkeypatch.setattr(cells, "_train_cell", die_once)
    capfd.readouterr()
    assert main([*arguments, "--output", f"{tmp_path}/out"]) == 0
    assert re.search(r"^compare   40 steps, .*; 1 of 1 trainings$", capfd.readouterr().err, re.MULTILINE)
    assert (tmp_path / "out" / "attempt").read_text() == "2 signs of an earlier attempt"
    name = "razor-0.2-epochs-0.json"
    found, expected = (json.loads((tmp_path / of / "cells" / name).read_text()) for of in ("out", "whole"))
    assert untimed(found) == untimed(expected)
    assert [path.name for path in (tmp_path / "out" / "cells").iterdir()] == [name]  # the state is of no use any more
    # Nor is one whose writer died between writing the row and deleting it.
    (tmp_path / "out" / "cells" / "razor-0.2-epochs-0.pt").touch()
    assert main([*arguments, "--output", f"{tmp_path}/out"]) == 0
    assert [path.name for path in (tmp_path / "out" / "cells").iterdir()] == [name]


def test_a_training_in_which_nothing_happens_is_stopped(run, tmp_path, capfd, monkeypatch):
    def stuck(config, missing, data, folder):
        yield missing[0], cells.Steps(1)
        time.sleep(60)

    samples, _ = comparing.read_samples(RunStore(f"{run}/run"))
    monkeypatch.setattr(comparing, "_gather", lambda *_: SimpleNamespace(samples=samples))  # it may take longer
    monkeypatch.setattr(comparing, "train_cells", stuck)
    paths = ["--run", f"{run}/run", "--output", f"{tmp_path}/out"]
    assert main(["compare", *paths, *SMALL, "--methods", "random", "--stall-timeout", "10"]) == 1
    error = capfd.readouterr().err
    assert re.search(r"nothing was finished in 10 s, in stage compare \(1 of \d+ steps done\)", error)
    assert "Traceback" not in error


def test_the_driver_chooses_the_precision_of_all_cells(monkeypatch):
    calls = []
    monkeypatch.setattr(cells.training, "_cpu_has_bf16", lambda: True)
    monkeypatch.setattr(comparing.runtime, "run_tasks", lambda _, given, **options: calls.extend(given) or iter(()))
    missing = cells.cells(CompareConfig(run="run", output="out", methods=("random",)))
    for asked, chosen in (("auto", "bf16"), ("float32", "float32")):
        calls.clear()
        config = CompareConfig(run="run", output="out", precision=asked)
        assert not list(comparing.train_cells(config, missing, None, None))  # type: ignore[arg-type]
        assert len(calls) == len(missing) > 1
        assert {given.precision for _, given, *_ in calls} == {chosen}


@pytest.mark.parametrize(
    ("resources", "num_workers", "share"),
    [({"CPU": 8.0, "GPU": 2.0}, "auto", 1.0), ({"CPU": 8.0, "GPU": 2.0}, 3, 0.5), ({"CPU": 8.0}, 3, 0.0)],
)
def test_trainings_share_the_gpus_of_a_machine_as_many_to_each(monkeypatch, resources, num_workers, share):
    given, calls = {}, []
    nodes = [{"Alive": True, "Resources": resources}]
    monkeypatch.setattr(comparing.runtime.ray, "cluster_resources", lambda: resources)
    monkeypatch.setattr(comparing.runtime.ray, "nodes", lambda: nodes)

    def run_tasks(function, arguments, **options):
        given.update(options)
        calls.extend(arguments)
        return iter(())

    monkeypatch.setattr(comparing.runtime, "run_tasks", run_tasks)
    config = CompareConfig(run="run", output="out", num_workers=num_workers)
    assert not list(comparing.train_cells(config, cells.cells(config)[:1], None, None))  # type: ignore[arg-type]
    assert given.get("num_gpus") == share
    assert given["at_most"] == (None if num_workers == "auto" else num_workers)
    assert given["num_cpus"] == {"auto": 4, 3: 2}[num_workers]
    ((_, settled, *_, threads),) = calls
    # Where a cell lands does not decide what it is trained on.
    assert (settled.model.device, threads) == ("cuda" if share else "cpu", given["num_cpus"])


def test_trainings_start_from_weights_that_are_given(run, tmp_path, capfd):
    """With a rate at which nothing is learned, a training ends where it started."""
    torch.manual_seed(7)
    given = model.build("lenet", 10)
    with torch.no_grad():
        model.classifier(given).bias[3] += 1000  # it takes everything for a 3
    (tmp_path / "given.safetensors").write_bytes(model.save_weights(given))
    pruned = RunStore(f"{run}/run")
    samples, sample_id = comparing.read_samples(pruned)
    catalog = catalogs.read(from_dict(PruneConfig, pruned.read_json("config.json")).input, pruned)
    encoded = pq.read_table(run / "test")["image"].to_pylist()
    table = pq.read_table(run / "test").set_column(0, "image", pa.array([b"no image", *encoded[1:]], pa.binary()))
    held_out = catalogs.build(InputConfig(path=str(write_shards(table, tmp_path / "test", 1))), like=catalog)
    rows = {}
    for weights_of in (None, f"{tmp_path}/given.safetensors"):
        network = ModelConfig(arch="lenet", image_size=32, weights=weights_of)
        config = CompareConfig(run="run", output="out", model=network, learning_rate=1e-12, augment="none", epochs=1)
        data = comparing._gather(config, samples, sample_id, catalog, held_out)
        assert "warning   1 held-out images could not be used, and count in no figure" in capfd.readouterr().err
        assert data.eval_label.tolist() == table["label"].to_pylist()[1:]
        *_, rows[weights_of] = cells._train_cell(
            cells.Cell("random", 0.2, "epochs", 0), config, data, folder_at(tmp_path / "out", 3600), 1
        )
    assert rows[f"{tmp_path}/given.safetensors"]["recall"] == [float(label == 3) for label in range(10)]
    assert rows[None]["recall"] != rows[f"{tmp_path}/given.safetensors"]["recall"]


def test_razor_chooses_as_its_run_did(capfd):
    pruned = PruneConfig(
        input=InputConfig(path="in"),
        output="run",
        keep_fraction=0.3,
        weigh=WeighConfig(quota="uniform", class_floor=7),
        sample=SampleConfig(gamma=0.5),
    )
    asked = CompareConfig(run="run", output="out", weigh=WeighConfig(class_floor=3))
    found = reuse.choice_as_in(asked, pruned)
    assert found.weigh == WeighConfig(quota="uniform", class_floor=3)  # what is given counts
    assert found.sample == SampleConfig(gamma=0.5)
    assert replace(found, weigh=asked.weigh, sample=asked.sample) == asked
    assert "note      razor as in run: weigh.quota 'uniform', sample.gamma 0.5\n" in capfd.readouterr().err
    assert reuse.choice_as_in(asked, replace(pruned, weigh=WeighConfig(), sample=SampleConfig())) == asked
    assert capfd.readouterr().err == ""
    # In rounds the proxy learned by these weights.
    in_rounds = replace(pruned, rounds=2)
    assert reuse.choice_as_in(asked, in_rounds) == found
    with pytest.raises(
        ValueError, match=r"learned in rounds by other weights \(weigh.scheme: 'hard' here, 'linear' there"
    ):
        reuse.choice_as_in(replace(asked, weigh=WeighConfig(scheme="hard")), in_rounds)


def test_razor_chooses_for_what_each_training_is(run, capfd):
    data, config = data_of(run), CompareConfig(run="run", output="out", sample=SampleConfig(tail=0.0))

    def choose(method, budget):
        return cells._choose(cells.Cell(method, 0.2, budget, 4), config, data).tolist()

    for budget in ("epochs", "steps"):
        sample = SampleConfig(tail=0.0, trained_for=budget)
        assert choose("razor", budget) == np.flatnonzero(gamma_razor(data.samples, 60, 4, sample=sample)).tolist()
        assert choose("razor:trained_for=epochs", budget) == choose("razor", "epochs")  # whoever says so
        assert choose("ccs", budget) == choose("ccs", "epochs")
    assert choose("razor", "steps") != choose("razor", "epochs")
    by_quotas = "razor:focus=0.5,gamma=2,scheme=hard"  # what else follows is given
    assert choose(by_quotas, "steps") != choose(by_quotas, "epochs")
    assert choose(f"{by_quotas},beta=0.9", "steps") == choose(f"{by_quotas},beta=0.9", "epochs")
    capfd.readouterr()
    # What the run's subset is trained for says nothing of a comparison's trainings, which is told.
    pruned = PruneConfig(
        input=InputConfig(path="in"), output="run", keep_fraction=0.3, sample=SampleConfig(trained_for="steps")
    )
    assert reuse.choice_as_in(config, pruned) == config
    assert "note      run was to be trained for equal steps: --budgets steps compares" in capfd.readouterr().err
    both = replace(config, budgets=("epochs", "steps"))
    assert reuse.choice_as_in(both, pruned) == both
    assert capfd.readouterr().err == ""
    with pytest.raises(ValueError, match="sample.trained_for is for prune: .* Use --budgets"):
        replace(config, sample=SampleConfig(trained_for="steps"))


def test_rounds_count_in_proportion_to_what_is_left_of_a_class(run):
    scored, _ = comparing.read_samples(RunStore(f"{run}/run"))
    left = scored.take(np.flatnonzero(~comparing.validation_mask(scored, 0.1)))
    data = replace(data_of(run), samples=left)
    pruned = PruneConfig(input=InputConfig(path="in"), output="run", keep_fraction=0.3, rounds=3)
    assert comparing._with_rounds(data, scored, [], pruned) is data
    counts = {str(label): 10.0 + label for label in range(10)}
    rounds = [{"ispl": {"threshold": 0.8}, "effective_count": counts}, {"ispl": {}, "effective_count": counts}]
    found = comparing._with_rounds(data, scored, rounds, pruned)
    assert found.threshold == pytest.approx(0.2)  # it fell twice, by half
    sizes, of_left = np.bincount(scored.label), np.bincount(left.label)
    assert len(found.earlier) == 2
    assert found.earlier[1] == {
        label: pytest.approx((10 + label) * of_left[label] / sizes[label]) for label in range(10)
    }


def test_a_row_that_was_not_written_to_its_end_is_trained_again(run, tmp_path):
    store = RunStore(str(tmp_path))
    row = {"method": "random", "keep_fraction": 0.2, "budget": "epochs", "seed": 0, "accuracy": 0.5}
    store.write_json("cells/random-0.2-epochs-0.json", row)
    (tmp_path / "cells" / "random-0.2-epochs-1.json").write_text('{"method": "ran')
    assert comparing._done(store) == {cells.Cell("random", 0.2, "epochs", 0): row}


def test_ids_that_are_given_twice_are_told_apart(run):
    samples, sample_id = comparing.read_samples(RunStore(f"{run}/run"))
    doubled = replace(samples, ids=samples.ids // np.uint64(2))
    keep = gamma_razor(doubled, 90, 0)
    assert keep.sum() == 90
    order = np.random.default_rng(0).permutation(300)
    np.testing.assert_array_equal(gamma_razor(doubled.take(order), 90, 0), keep[order])
    np.testing.assert_array_equal(samples.tie_break, sample_id)
    with pytest.raises(ValueError, match="tie_break"):
        gamma_razor(replace(doubled, tie_break=None), 90, 0)


def test_a_score_that_another_run_has_not_is_named(run, tmp_path):
    shutil.copytree(run / "run", tmp_path / "other")
    commit = tmp_path / "other" / "proxy" / ".commit.json"
    commit.write_text(commit.read_text().replace('"weights_sha256": "', '"weights_sha256": "other'))
    samples, sample_id = comparing.read_samples(RunStore(f"{run}/run"), "mean_el2n")  # which a trained proxy has
    with pytest.raises(ValueError, match=r"other has no score 'mean_el2n', by which .*run ranks\. Pass a --hardness"):
        comparing._stability(RunStore(f"{run}/run"), samples, sample_id, RunStore(f"{tmp_path}/other"))


def test_without_held_out_images_a_part_is_set_aside(run, tmp_path, capfd):
    shutil.copytree(run / "run", tmp_path / "same")
    paths = ["--run", f"{run}/run", "--output", f"{tmp_path}/out", "--other-runs", f"{tmp_path}/same"]
    options = ["--epochs", "1", "--keep-fractions", "0.5", "--methods", "random", "--seeds", "0", "--no-train-on-all"]
    assert main(["compare", *paths, *options]) == 2
    assert f"{tmp_path}/same was scored by the same proxy as {run}/run" in capfd.readouterr().err
    assert not (tmp_path / "out").exists()  # before anything was trained
    # As if of another proxy, which finds hard what this one finds easy.
    commit = tmp_path / "same" / "proxy" / ".commit.json"
    commit.write_text(commit.read_text().replace('"weights_sha256": "', '"weights_sha256": "other'))
    for file in (tmp_path / "same" / "scores").glob("*.parquet"):
        table = pq.read_table(file)
        at = table.schema.get_field_index("el2n")
        pq.write_table(table.set_column(at, table.schema.field(at), pc.negate(table["el2n"])), file)
    assert main(["compare", *paths, *options, "--validation-fraction", "0.4"]) == 0
    assert [path.name for path in (tmp_path / "out" / "cells").iterdir()] == ["random-0.5-epochs-0.json"]
    row = json.loads((tmp_path / "out" / "cells" / "random-0.5-epochs-0.json").read_text())
    samples, _ = comparing.read_samples(RunStore(f"{run}/run"))
    aside = comparing.validation_mask(samples, 0.4)
    assert row["num_eval"] == aside.sum() > 110
    assert row["num_kept"] == round(0.5 * (300 - aside.sum()))
    assert "| -1.000 | 0.000 | 0.000 | 0.000 |" in capfd.readouterr().out


@pytest.mark.parametrize(
    "changed",
    [
        "row format",
        "rule",
        "rivals",
        "precision",
        "weights to start from",
        "input",
        "held-out",
        "proxy",
        "scores",
        "choice",
    ],
)
def test_trainings_of_other_images_or_scores_are_not_put_beside(run, tmp_path, capfd, changed):
    shutil.copytree(run / "run", tmp_path / "run")
    paths = ["--run", f"{tmp_path}/run", "--output", f"{tmp_path}/out", "--eval", f"{run}/test"]
    options = ["--epochs", "1", "--keep-fractions", "0.2", "--methods", "random", "--no-train-on-all", "--seeds"]
    assert main(["compare", *paths, *options, "0"]) == 0
    assert main(["compare", *paths, *options, "0"]) == 0
    if changed in ("proxy", "scores"):
        commit = tmp_path / "run" / changed / ".commit.json"
        facts = json.loads(commit.read_text())
        commit.write_text(json.dumps(facts | {"weights_sha256": "other", "batch_size": 7}))
    else:
        begun = tmp_path / "out" / "_made_of.json"
        begun.write_text(json.dumps(json.loads(begun.read_text()) | {changed: "other"}))
    capfd.readouterr()
    assert main(["compare", *paths, *options, "0", "1"]) == 2
    assert f"({changed} changed since). Choose another --output." in capfd.readouterr().err
    assert len(list((tmp_path / "out" / "cells").iterdir())) == 1


def test_trainings_from_other_weights_are_not_put_beside(run, tmp_path, capfd):
    weights_file = tmp_path / "start.safetensors"
    options = ["--run", f"{run}/run", "--output", f"{tmp_path}/out", "--eval", f"{run}/test", "--epochs", "1"]
    options += ["--keep-fractions", "0.2", "--methods", "random", "--no-train-on-all", "--weights", str(weights_file)]
    for seed, status in ((0, 0), (1, 2)):
        torch.manual_seed(seed)
        weights_file.write_bytes(model.save_weights(model.build("resnet9", 10)))
        assert main(["compare", *options, "--seeds", str(seed)]) == status
    assert "(weights to start from changed since)" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("methods", "twins"),
    [
        (["razor:gamma=2", "ccs", "razor:gamma=2.0"], "razor:gamma=2 and razor:gamma=2.0"),
        (["razor", "razor:tail=auto"], "razor and razor:tail=auto"),
        (["ccs:num_strata=50", "ccs"], "ccs:num_strata=50 and ccs"),
        (["razor:focus=0.3", "razor"], "razor:focus=0.3 and razor"),  # with --sample.focus 0.3
        (["razor", "razor:trained_for=steps"], "razor and razor:trained_for=steps"),  # with --budgets steps
    ],
)
def test_one_method_by_two_names_is_refused(methods, twins):
    config = CompareConfig(
        run="run",
        output="out",
        methods=tuple(methods),
        sample=SampleConfig(focus=0.3 if "focus" in twins else "auto"),
        budgets=("steps",) if "steps" in twins else ("epochs",),
    )
    pruned = PruneConfig(input=InputConfig(path="in"), output="out", keep_fraction=0.3)
    with pytest.raises(ValueError, match=f"^{twins} keep the same: leave one out"):
        comparing.check_names(config, pruned)
    comparing.check_names(replace(config, methods=("razor", "razor:gamma=2", "ccs", "ccs_per_class", "dual")), pruned)
    for budgets in (("steps",), ("epochs", "steps")):
        two_choices = replace(config, methods=("razor", "razor:trained_for=epochs"), budgets=budgets)
        comparing.check_names(two_choices, pruned)  # where the budget is steps, they keep not the same


def test_what_is_known_stays_told_while_more_is_trained(run, tmp_path, monkeypatch):
    paths = ["--run", f"{run}/run", "--output", f"{tmp_path}/out", "--eval", f"{run}/test"]
    options = ["--epochs", "1", "--keep-fractions", "0.2", "--methods", "random", "--no-train-on-all", "--seeds"]
    assert main(["compare", *paths, *options, "0"]) == 0
    text = (tmp_path / "out" / "compare.md").read_text()
    assert "Not complete" not in text

    def stopped(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(comparing, "train_cells", stopped)
    assert main(["compare", *paths, *options, "0", "1"]) == 130
    again = (tmp_path / "out" / "compare.md").read_text()
    assert "Not complete: 1 training is missing." in again
    rows = [[line for line in of.splitlines() if "random" in line] for of in (text, again)]
    assert rows[0] == rows[1] != []


def test_validation_is_a_part_of_each_class_whatever_the_order():
    rng = np.random.default_rng(0)
    samples = Samples(ids=rng.permutation(1000), label=np.repeat([0, 1, 2], [600, 300, 100]))
    aside = comparing.validation_mask(samples, 0.1)
    assert np.bincount(samples.label[aside]).tolist() == [60, 30, 10]
    order = rng.permutation(1000)
    np.testing.assert_array_equal(comparing.validation_mask(samples.take(order), 0.1), aside[order])
    more = comparing.validation_mask(samples, 0.4)
    assert np.bincount(samples.label[more]).tolist() == [240, 120, 40]
    assert (more >= aside).all()
    # Of small classes one image, of two as of nineteen; where there is but one it is left to choose from.
    small = Samples(ids=np.arange(32), label=np.repeat([0, 1, 2, 3], [1, 2, 10, 19]))
    assert np.bincount(small.label[comparing.validation_mask(small, 0.1)], minlength=4).tolist() == [0, 1, 1, 1]


def test_equal_steps_are_of_as_many_samples():
    config, options = CompareConfig(run="run", output="out", epochs=10), {"seed": 0, "method": "random"}
    for num_samples, fraction, budget, batch_size, num_steps in (
        (50_000, 0.1, "epochs", 64, 10 * 79),  # 5,000 in batches of 64
        (50_000, 0.1, "steps", 128, 10 * 391),
        (20_000, 0.1, "steps", 128, 10 * 157),
        (50_000, 1.0, "epochs", 128, 10 * 391),
    ):
        cell = cells.Cell(keep_fraction=fraction, budget=budget, **options)
        assert cells.batch_size_of(config, cell, num_samples) == batch_size
        assert cells.num_steps_of(config, cell, num_samples) == num_steps
        assert cells.batch_size_of(replace(config, batch_size=7), cell, num_samples) == 7


def test_a_cell_is_trained_in_batches_of_its_size(run, tmp_path, monkeypatch):
    told, fit = [], training.fit

    def spy(*arguments, **options):
        told.append((arguments[3].batch_size, options["num_steps"]))
        return fit(*arguments, **options)

    monkeypatch.setattr(cells.training, "fit", spy)
    monkeypatch.setattr(cells.training, "choose_batch_size", lambda num_samples: num_samples // 3)
    config = CompareConfig(run="run", output="out", epochs=2, augment="none")
    for budget in ("epochs", "steps"):
        cell = cells.Cell("random", 0.2, budget, 0)
        list(cells._train_cell(cell, config, data_of(run), folder_at(tmp_path, 3600), 1))
    assert told == [(20, 6), (100, 6)]  # of 60, and of 300 samples


def test_images_and_scores_must_fit_the_object_store(run, tmp_path, capfd, monkeypatch):
    """300 images of 8 x 8 take 57,600 bytes, 1,200 more in crops, their embeddings and scores several times as much."""
    paths = ["--run", f"{run}/run", "--output", f"{tmp_path}/out", "--methods", "random", "--augment", "none"]
    monkeypatch.setattr(comparing.runtime, "smallest_object_store", lambda: 100_000)
    assert main(["compare", *paths]) == 2
    assert "the decoded images and their scores take 0.0 GiB" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--methods", "guess"], "there is no method 'guess'. Methods: razor, random,"),
        (["--methods", "dual"], "there is no score 'dual'"),  # the proxy was given: nobody saw it learn
        (["--methods", "ccs:hardness=aum"], "there is no score 'aum'"),
        (["--methods", "razor:hardness=aum"], "there is no score 'aum'"),
        (
            ["--methods", "razor", "--weigh.class-floor", "20", "--keep-fractions", "0.1"],
            "razor at 10 %: a floor of 20",
        ),
        (["--keep-fractions", "30"], "keep_fraction must be in (0, 1]"),
        (["--methods", "random", "random"], "none twice"),
        (["--run", "/nowhere"], "holds no run of prune"),
        (["--validation-fraction", "0.3"], "validation_fraction is of images that are set aside where none are held"),
        (["--validation-fraction", "1"], "validation_fraction must be between 0 and 1, got 1.0"),
    ],
)
def test_mistakes_are_told_before_anything_is_trained(run, tmp_path, capfd, options, message):
    paths = ["--run", f"{run}/run", "--output", f"{tmp_path}/out", "--eval", f"{run}/test"]
    assert main(["compare", *paths, *options]) == 2
    error = capfd.readouterr().err
    assert message in error
    assert "Traceback" not in error
    assert not (tmp_path / "out").exists()  # lest what was refused stand in the way of what it should have been


def test_labels_of_the_run_are_those_that_are_trained_on(run):
    samples, sample_id = comparing.read_samples(RunStore(f"{run}/run"))
    assert (np.diff(sample_id) > 0).all()
    assert samples.hardness == "el2n"
    assert (
        samples.label.tolist()
        == pa.concat_tables([pq.read_table(file) for file in sorted((run / "in").glob("*.parquet"))])[
            "label"
        ].to_pylist()
    )
