"""The whole pipeline through the command line, on real images: what a user gets, and what a user is told."""

import contextlib
import io
import json
import re
import shutil
import signal
import time
from dataclasses import replace
from types import SimpleNamespace

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.fs as pafs
import pyarrow.parquet as pq
import pytest
import ray
import torch
from PIL import Image

from razor_ray import images, lease, model, pipeline, schema, weights
from razor_ray.cli import main
from razor_ray.config import CompareConfig, InputConfig, PruneConfig, WeighConfig, from_dict, to_dict
from razor_ray.interrupt import StoppedError
from razor_ray.run_store import RunStore
from razor_ray.shards import InputError
from razor_ray.stages import catalog as catalogs
from razor_ray.stages import cells, decode, preflight, reuse, runtime
from razor_ray.stages import compare as comparing
from razor_ray.stages import proxy as proxies
from razor_ray.training import choose_precision
from razor_ray.window import passes
from tests.conftest import catalog_of, readme_python, write_shards

pytestmark = pytest.mark.usefixtures("ray_session")


@pytest.fixture(scope="module")
def weights_file(tmp_path_factory):
    """A proxy that a user brings: random weights score as well as any for what is tested here."""
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("proxy") / "proxy.safetensors"
    path.write_bytes(model.save_weights(model.build("resnet9", 10)))
    return path


@pytest.fixture(scope="module")
def run(tmp_path_factory, digits, weights_file):
    """A finished run: its folder, and the digits that went in."""
    folder = tmp_path_factory.mktemp("run")
    path = write_shards(digits, folder / "in", 3)
    assert prune(path, folder / "out", weights_file, "--input.id-column", "name") == 0
    return folder / "out"


def prune(path, output, weights, *options) -> int:
    # One actor: each that starts loads torch, which is most of the time that these tests take.
    fixed = ["--input", str(path), "--output", str(output), "--proxy.weights", str(weights), "--score.num-workers", "1"]
    return main(["prune", *fixed, *([] if "--keep-fraction" in options else ["--keep-fraction", "0.3"]), *options])


def test_run_folder_is_the_contract(run):
    assert {path.name for path in run.iterdir() if not path.name.startswith(("_", "."))} == {
        *("config.json", "manifest.json", "report.html", "proxy"),
        *("catalog", "scores", "quarantine", "weights", "selection", "subset"),
    }
    stages = {
        "catalog": schema.CATALOG,
        "scores": schema.scores(128),
        "weights": schema.WEIGHTS,
        "selection": schema.SELECTION,
        "subset": schema.SUBSET,
    }
    for stage, expected in stages.items():
        files = sorted((run / stage).glob("*.parquet"))
        assert files
        for file in files:
            assert pq.read_schema(file).equals(expected), stage


def test_manifest_reconciles(run):
    manifest = json.loads((run / "manifest.json").read_text())
    counts = manifest["counts"]
    assert counts == {"input": 400, "scored": 400, "kept": 120, "dropped": 280, "quarantined": 0}
    assert manifest["budget"] == {"keep_fraction": 0.3, "asked": 120, "met": 120}
    assert sum(row["kept"] for row in manifest["classes"]) == 120
    assert all(row["kept"] == row["quota"] <= row["num_samples"] for row in manifest["classes"])
    assert sum(manifest["reasons"].values()) == 400
    assert len(manifest["proxy"]["weights_sha256"]) == 64
    assert manifest["scores"]["decoders"] == images.decoders()
    assert all(seconds > 0 for seconds in manifest["seconds"].values())


def test_subset_is_the_selection_with_the_input_bytes(run, digits):
    subset = pq.read_table(run / "subset")
    selection = pq.read_table(run / "selection")
    kept = selection.filter(selection["keep"]).sort_by("sample_id")
    subset = subset.sort_by("sample_id")
    assert subset["sample_id"].equals(kept["sample_id"])
    by_name = {name: row for row, name in enumerate(digits["name"].to_pylist())}
    places = [by_name[key] for key in subset["key"].to_pylist()]
    rows = digits.take(pa.array(places))
    # An id is where the image lies, to the last bit: shards of 133, 133 and 134 rows, the third's ids above 2^33.
    shard, row = np.divmod(places, 133)
    shard, row = np.minimum(shard, 2), row + 133 * (shard - np.minimum(shard, 2))
    assert subset["sample_id"].to_pylist() == [(int(s) << 32) + int(r) for s, r in zip(shard, row, strict=True)]
    assert [image["bytes"] for image in subset["image"].to_pylist()] == rows["image"].to_pylist()
    assert subset["label"].to_pylist() == rows["label"].to_pylist()
    np.testing.assert_allclose(np.mean(subset["weight"].to_numpy().astype(np.float64)), 1.0, rtol=1e-5)
    expected = kept["ispl_weight"].to_numpy() / kept["ispl_weight"].to_numpy().astype(np.float64).mean()
    np.testing.assert_allclose(subset["weight"], expected, rtol=1e-5)


def test_subset_opens_in_hugging_face_datasets(run, digits, tmp_path):
    # The folder, as it is: what else lies in it must not be taken for data.
    loaded = datasets.load_dataset(str(run / "subset"), split="train", cache_dir=str(tmp_path))
    assert loaded.num_rows == 120
    assert loaded.features["label"].names == [str(label) for label in range(10)]
    assert loaded[0]["image"].size == (8, 8)  # decoded: the metadata says that it is an image
    encoded = dict(zip(digits["name"].to_pylist(), digits["image"].to_pylist(), strict=True))
    for row in loaded.cast_column("image", datasets.Image(decode=False)):
        assert row["image"]["bytes"] == encoded[row["key"]]


def test_subset_opens_in_ray_data(run):
    import ray.data

    assert ray.data.read_parquet(str(run / "subset")).count() == 120


def test_the_most_suspicious_labels_as_the_readme_reads_them(run, tmp_path, capsys):
    taken = ["--scores-from", str(run), "--keep-fraction", "0.3", "--sample.tail", "0.1"]
    assert main(["prune", "--input", f"{run.parent}/in", "--output", f"{tmp_path}/out", *taken]) == 0
    capsys.readouterr()
    exec(readme_python("noise").replace("runs/photos", f"{tmp_path}/out"), names := {})
    selection = pq.read_table(tmp_path / "out" / "selection")
    assert len(names["noise"]) == selection["reason"].to_pylist().count("noise") > 30
    shown = capsys.readouterr().out.splitlines()
    hardest = names["noise"].sort_by([("hardness", "descending")]).to_pylist()[0]
    scores = pq.read_table(tmp_path / "out" / "scores", filters=[("sample_id", "=", hardest["sample_id"])])
    found = scores["predicted"][0].as_py()
    assert shown[0] == f"{hardest['key']}: {hardest['label']}, by the proxy {found}"
    assert len(shown) == len(names["noise"])


def test_another_choice_from_the_scores_of_a_run(run, weights_file, tmp_path, monkeypatch, capfd):
    """The same as if everything had been scored for it, also when the run that it was scored in has gone."""
    choice = ["--keep-fraction", "0.1", "--seed", "3", "--sample.gamma", "0.5", "--sample.trained-for", "steps"]
    assert prune(run.parent / "in", tmp_path / "fresh", weights_file, "--input.id-column", "name", *choice) == 0
    shutil.copytree(run, tmp_path / "scored")
    for module, name in ((pipeline, "score"), (proxies, "make")):
        monkeypatch.delattr(module, name)  # they are not to be called
    taken = ["prune", "--input", f"{run.parent}/in", "--output", f"{tmp_path}/out"]
    taken += ["--scores-from", f"{tmp_path}/scored", *choice]
    assert main(taken) == 0
    note = f"note      as in {tmp_path}/scored: input.id_column 'name', proxy.weights '{weights_file}'\n"
    assert note in capfd.readouterr().err
    for stage in ("scores", "weights", "selection", "subset"):
        found, expected = (pq.read_table(tmp_path / name / stage) for name in ("out", "fresh"))
        assert found.equals(expected), stage
    settings = json.loads((tmp_path / "out" / "config.json").read_text())
    assert settings["input"]["id_column"] == "name"  # of that run, as is the proxy
    assert settings["proxy"]["weights"] == str(weights_file)
    manifests = [json.loads((tmp_path / name / "manifest.json").read_text()) for name in ("out", "fresh")]
    same = ("proxy", "scores", "budget", "counts", "reasons", "ispl", "classes", "scoring_cost")
    assert [manifests[0][name] for name in same] == [manifests[1][name] for name in same]
    sizes = [row["num_samples"] for row in manifests[0]["classes"]]
    assert manifests[0]["ispl"]["beta"] == weights.default_beta(sizes, passes(0.1, "steps"))
    assert f"taken from {tmp_path}/scored" in (tmp_path / "out" / "report.html").read_text()
    shutil.rmtree(tmp_path / "scored")
    shutil.rmtree(tmp_path / "out" / "selection")
    assert main(taken) == 0
    assert pq.read_table(tmp_path / "out" / "selection").equals(pq.read_table(tmp_path / "fresh" / "selection"))
    # Quotas of another version, or of one that did not say, which are not to be filled by this one's rule.
    shutil.rmtree(tmp_path / "out" / "selection")
    commit = tmp_path / "out" / "weights" / ".commit.json"
    facts = json.loads(commit.read_text())
    for other in (facts | {"rule": -1}, {name: fact for name, fact in facts.items() if name != "rule"}):
        commit.write_text(json.dumps(other))
        assert main(taken) == 2
        assert f"the classes' quotas in {tmp_path}/out are of another version" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--proxy.arch", "resnet18"], "were made otherwise (proxy.arch: 'resnet18' here, 'auto' there)"),
        (
            ["--score.batch-size", "7", "--rounds", "2"],
            "(score.batch_size: 7 here, 'auto' there; rounds: 2 here, 1 there)",
        ),
        (["--input.id-column", "label"], "(input.id_column: 'label' here, 'name' there)"),
        (["--input", "{other}"], "has scored other samples than those of {other}"),
        (["--scores-from", "{other}"], "{other} holds no run of prune that has scored its samples"),
        (["--scores-from", "s3://user:word@bucket/run"], "scores_from must not hold a password"),
        (["--output", "{run}"], "Its scores are there for another choice: another --output, and --scores-from {run}."),
    ],
)
def test_scores_that_cannot_be_taken(run, digits, tmp_path, capfd, options, message):
    other = write_shards(digits.slice(0, 399), tmp_path / "other", 3)
    places = {"other": other, "run": run}
    arguments = ["prune", "--input", f"{run.parent}/in", "--output", f"{tmp_path}/out", "--scores-from", str(run)]
    arguments += ["--keep-fraction", "0.1", *(option.format(**places) for option in options)]
    assert main(arguments) == 2
    error = capfd.readouterr().err
    assert message.format(**places) in error
    assert "Traceback" not in error
    assert not (tmp_path / "out").exists()


def test_scores_are_not_offered_where_they_were_made_otherwise(run, tmp_path, capfd):
    for options, offered in (
        (["--sample.gamma", "0.5", "--weigh.scheme", "hard"], True),
        (["--score.batch-size", "7"], False),
        (["--seed", "4", "--proxy.arch", "resnet18"], False),
    ):
        options += ["--input.id-column", "name", "--keep-fraction", "0.3"]
        weights = json.loads((run / "config.json").read_text())["proxy"]["weights"]
        assert prune(run.parent / "in", run, weights, *options) == 2
        told = capfd.readouterr().err
        assert "holds another run" in told
        assert (f"--scores-from {run}" in told) == offered


def test_what_auto_stood_for_may_be_given(run, tmp_path):
    asked = PruneConfig(input=InputConfig(path=f"{run.parent}/in"), output=f"{tmp_path}/out", keep_fraction=0.1)
    asked = replace(asked, scores_from=str(run))
    scored = json.loads((run / "manifest.json").read_text())["scores"]
    proxy = replace(asked.proxy, arch="resnet9", image_size=8)
    score = replace(asked.score, batch_size=scored["batch_size"], precision="float32")
    assert reuse.settings(replace(asked, proxy=proxy, score=score)) == reuse.settings(asked)
    with pytest.raises(ValueError, match="proxy.image_size: 16 here, 'auto' there"):
        reuse.settings(replace(asked, proxy=replace(proxy, image_size=16)))


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ("catalog", "has scored other samples than those of"),
        ("proxy", "has another proxy than when this run began"),
        ("quarantine", "the same command goes on: {scored}/quarantine names all of them."),
    ],
)
def test_scores_of_a_run_that_is_another_by_now(run, tmp_path, capfd, monkeypatch, changed, message):
    """Begun, stopped, and when it goes on the other run has been made anew."""
    scored = tmp_path / "scored"
    shutil.copytree(run, scored)
    arguments = ["prune", "--input", f"{run.parent}/in", "--output", f"{tmp_path}/out", "--keep-fraction", "0.1"]
    arguments += ["--scores-from", str(scored)]

    def stop(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(pipeline.reuse, "take_scores", stop)
        assert main(arguments) == 130
    if changed == "catalog":
        table = pq.read_table(scored / "catalog" / "catalog.parquet")
        other = pa.array([f"{text}0" for text in table["fingerprint"].to_pylist()])
        at = table.schema.get_field_index("fingerprint")
        pq.write_table(table.set_column(at, table.schema.field(at), other), scored / "catalog" / "catalog.parquet")
    else:
        commit = scored / changed / ".commit.json"
        facts = json.loads(commit.read_text())
        facts |= {"weights_sha256": "other"} if changed == "proxy" else {"reasons": {"not an image": 9}}
        commit.write_text(json.dumps(facts))
    assert main(arguments) == 2
    error = capfd.readouterr().err
    assert message.format(scored=scored) in error
    assert ("9 of 400 samples cannot be used so far (9 not an image)" in error) == (changed == "quarantine")
    assert "Traceback" not in error
    assert not (tmp_path / "out" / "scores").exists()


def test_a_run_inside_of_its_input_is_refused_and_leaves_nothing_there(digits, weights_file, tmp_path, capfd):
    path = write_shards(digits.slice(0, 60), tmp_path / "in", 1)
    for output in (path / "run", path):
        assert prune(path, output, weights_file) == 2
        assert f"--output {output} lies in --input {path}" in capfd.readouterr().err
        assert [file.name for file in path.iterdir()] == ["train-00000.parquet"]


def test_a_run_of_an_earlier_state_is_refused(run, tmp_path, capfd):
    shutil.copytree(run, tmp_path / "old")
    commit = tmp_path / "old" / "catalog" / ".commit.json"
    facts = json.loads(commit.read_text())
    commit.write_text(json.dumps({name: value for name, value in facts.items() if name != "class_names"}))
    for arguments in (["--scores-from", f"{tmp_path}/old", "--output", f"{tmp_path}/out", "--keep-fraction", "0.1"],):
        assert main(["prune", "--input", f"{run.parent}/in", *arguments]) == 2
        assert f"{tmp_path}/old was made by an earlier state of razor_ray" in capfd.readouterr().err


def test_a_proxy_that_was_changed_is_not_taken(run, tmp_path, capfd):
    shutil.copytree(run, tmp_path / "scored")
    weights = tmp_path / "scored" / "proxy" / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    arguments = ["prune", "--input", f"{run.parent}/in", "--output", f"{tmp_path}/out", "--keep-fraction", "0.1"]
    assert main([*arguments, "--scores-from", f"{tmp_path}/scored"]) == 2
    assert "the weights of its proxy are not those that scored" in capfd.readouterr().err


def test_a_second_run_skips_what_is_done(run, digits, weights_file, capfd):
    before = {path: path.stat().st_mtime_ns for path in run.rglob("*.parquet")}
    for name in ("_proxy", "_scoring"):  # as if it had been killed between a stage's commit and this
        (run / name).mkdir()
        (run / name / "begun.json").touch()
    assert prune(run.parent / "in", run, weights_file, "--input.id-column", "name") == 0
    assert not list(run.glob("_*"))
    assert {path: path.stat().st_mtime_ns for path in run.rglob("*.parquet")} == before
    lines = [line.split() for line in capfd.readouterr().err.splitlines()]
    # By the names that the stages have while they are at work, as the README shows them.
    stages = ["catalog", "proxy", "score", "weigh", "sample", "subset"]
    assert [line[0] for line in lines if line[1:] == ["done", "before,", "skipped"]] == stages


def test_a_lost_stage_is_done_again_with_the_same_result(run, weights_file):
    before = pq.read_table(run / "selection").sort_by("sample_id")
    (run / "selection" / ".commit.json").unlink()  # as if the run had died before that
    (run / "subset" / ".commit.json").unlink()
    assert prune(run.parent / "in", run, weights_file, "--input.id-column", "name") == 0
    assert pq.read_table(run / "selection").sort_by("sample_id").equals(before)


def test_another_configuration_in_the_same_folder_is_refused(run, weights_file, capfd):
    status = prune(run.parent / "in", run, weights_file, "--input.id-column", "name", "--keep-fraction", "0.5")
    assert status == 2
    message = capfd.readouterr().err
    assert "holds another run (keep_fraction: 0.5 here, 0.3 there)" in message
    assert "Traceback" not in message


def test_config_json_repeats_the_run(run, tmp_path):
    assert main(["prune", "--config", str(run / "config.json"), "--output", str(tmp_path / "again")]) == 0
    columns = ["sample_id", "keep", "rank", "cluster", "ispl_weight"]
    again = pq.read_table(tmp_path / "again" / "selection", columns=columns).sort_by("sample_id")
    assert again.equals(pq.read_table(run / "selection", columns=columns).sort_by("sample_id"))


def test_a_changed_input_is_refused(run, digits, weights_file, capfd):
    added = run.parent / "in" / "train-00003.parquet"
    pq.write_table(digits.slice(0, 10), added)
    try:
        assert prune(run.parent / "in", run, weights_file, "--input.id-column", "name") == 2
    finally:
        added.unlink()
    assert "are not those that" in capfd.readouterr().err


def test_shards_in_any_order_of_names_keep_the_same_images(run, digits, weights_file, tmp_path):
    # The id column names the samples, so other shards in another order keep the same ones. Their scores differ in the
    # last bits at most, since the batches do: what is kept may differ only among equals.
    order = np.random.default_rng(0).permutation(400)
    path = write_shards(digits.take(pa.array(order)), tmp_path / "in", 5)
    assert prune(path, tmp_path / "out", weights_file, "--input.id-column", "name") == 0
    kept = set(pq.read_table(run / "subset")["key"].to_pylist())
    again = set(pq.read_table(tmp_path / "out" / "subset")["key"].to_pylist())
    assert len(kept & again) >= 115


@pytest.mark.system
def test_rounds_of_a_proxy_that_is_trained(digits, tmp_path, monkeypatch):
    """Three ISPL rounds: each trains on the weights of the one before, λ falls, an interruption between rounds changes
    nothing, and how samples fared over the epochs is told."""

    encoded = digits["image"].to_pylist()[:200]
    encoded[7] = b"no image"
    table = digits.slice(0, 200).set_column(0, "image", pa.array(encoded, pa.binary()))
    path = write_shards(table, tmp_path / "in", 2)
    arguments = ["prune", "--input", str(path), "--keep-fraction", "0.3", "--rounds", "3", "--proxy.epochs", "3"]
    # A hardness that only the last scores have.
    arguments += ["--score.num-workers", "1", "--score.hardness", "dual"]
    arguments += ["--keep-round-losses", "--weigh.quota", "ispl", "--sample.trained-for", "steps", "--output"]
    seen = {}
    train = pipeline.training.train
    weigh_round = proxies._weigh_round

    weighed_by = []
    dataset = decode.dataset

    def spy_on_decoding(catalog, planned, size, weight_column=None, beside=None):
        weighed_by.append(beside and beside.folder)
        return dataset(catalog, planned, size, weight_column, beside)

    def spy_on_training(*positional, sample_weights=None, last_epoch=None, **named):
        if sample_weights is not None:
            seen[last_epoch] = pq.read_table(sample_weights)  # before the round's folder is cleared away
        return train(*positional, sample_weights=sample_weights, last_epoch=last_epoch, **named)

    def killed(config, catalog, store, rounds, number, *others):
        if number == 2:
            raise KeyboardInterrupt
        weigh_round(config, catalog, store, rounds, number, *others)

    monkeypatch.setattr(decode, "dataset", spy_on_decoding)
    monkeypatch.setattr(pipeline.training, "train", spy_on_training)
    monkeypatch.setattr(proxies, "_weigh_round", killed)
    assert main([*arguments, str(tmp_path / "out")]) == 130
    assert (tmp_path / "out" / "_rounds" / "01" / "ispl" / ".commit.json").exists()
    monkeypatch.setattr(proxies, "_weigh_round", weigh_round)
    assert main([*arguments, str(tmp_path / "out")]) == 0
    assert not (tmp_path / "out" / "_rounds").exists()
    by = [None, *(f"{tmp_path}/out/_rounds/{number}/ispl" for number in ("01", "02"))]
    assert weighed_by == [*by[:2], *by]  # by whom it was interrupted, and who went on
    facts = json.loads((tmp_path / "out" / "proxy" / ".commit.json").read_text())["rounds"]
    final = json.loads((tmp_path / "out" / "weights" / ".commit.json").read_text())
    thresholds = [found["ispl"]["threshold"] for found in (*facts, final)]
    np.testing.assert_allclose(thresholds, thresholds[0] * np.array([1, 0.5, 0.25]))
    # Against the definition: of each round the weights from its losses, and quotas from the mean over rounds.
    scores = pq.read_table(tmp_path / "out" / "scores").sort_by("sample_id")
    assert scores.schema.equals(schema.scores(128, with_dynamics=True, num_rounds=3))
    assert scores.num_rows == 199
    losses = np.stack(scores["round_loss"].to_pylist())  # (N, T)
    np.testing.assert_array_equal(losses[:, 2], scores["loss"])
    assert (losses[:, 0] != losses[:, 1]).all()
    label = scores["label"].to_numpy()
    v = np.minimum(1.0, losses / thresholds)  # (N, T)
    counts = np.stack([np.bincount(label, weights=column) for column in v.T])  # (T, C)
    sizes = np.bincount(label)
    beta = weights.default_beta(sizes)
    for number in (1, 2):
        sample_weights = seen[number + 1].sort_by("sample_id")
        class_weight = weights.class_weights(counts[number - 1], beta)
        np.testing.assert_allclose(sample_weights["weight"], class_weight[label] * v[:, number - 1], rtol=1e-5)
        np.testing.assert_array_equal(sample_weights["sample_id"], scores["sample_id"])
    mean = counts.mean(axis=0)
    for_steps = weights.default_beta(sizes, passes(60 / 199, "steps"))  # of the subset's training; the proxy's has none
    expected = weights.class_quotas(weights.class_weights(mean, for_steps) * mean, sizes, 60)
    assert [found["beta"] for found in (*facts, final)] == [beta, beta, for_steps]
    assert for_steps < beta
    np.testing.assert_array_equal(pq.read_table(tmp_path / "out" / "weights")["quota"], expected)
    # How samples fared over the three epochs.
    columns = {name: scores[name].to_numpy() for name in schema.DYNAMICS_NAMES}
    np.testing.assert_allclose(columns["dual"], columns["dyn_unc"] * (1 - columns["mean_p"]), atol=1e-6)
    assert columns["dyn_unc"].max() > 0.1
    assert set(np.unique(columns["forgetting"])) <= {0.0, 1.0, 4.0}  # forgotten once at most, or never learned
    selection = pq.read_table(tmp_path / "out" / "selection").sort_by("sample_id")
    np.testing.assert_array_equal(selection["hardness"], columns["dual"])
    # Losses of earlier rounds are kept only when asked for, and a comparison chooses the same.
    run = RunStore(f"{tmp_path}/out")
    pruned = from_dict(PruneConfig, run.read_json("config.json"))
    catalog = catalogs.read(pruned.input, run)
    num_kept = [
        len(proxies.read(replace(pruned, keep_round_losses=asked), catalog, run).round_folders)
        for asked in (True, False)
    ]
    assert num_kept == [2, 0]
    samples, _ = comparing.read_samples(run)
    nothing = np.zeros(0)  # no training comes of it
    data = cells.Data(samples, nothing, nothing, nothing, "resnet9", 10, 8)  # type: ignore[arg-type]
    data = comparing._with_rounds(data, samples, run.commit_facts("proxy")["rounds"], pruned)
    razor = cells.method_of(cells.Cell("razor", 0.3, "steps", 0), CompareConfig(run="run", output="out"), data)
    np.testing.assert_array_equal(razor(samples, selection["keep"].to_numpy().sum(), pruned.seed), selection["keep"])
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert manifest["scores"]["hardness"] == "dual"
    assert manifest["proxy"]["precision"] == choose_precision("auto", torch.device("cpu"))
    assert manifest["proxy"]["training"] == {
        "num_workers": 1,
        "batch_size": 32,
        "learning_rate": pytest.approx(0.005),
        "device": "cpu",
        "num_threads": runtime.of_this_node("CPU"),
    }
    # All of it, rounds and quarantine too, is there for another choice.
    other = ["--scores-from", f"{tmp_path}/out", "--keep-fraction", "0.2", "--score.hardness", "aum", "--seed", "3"]
    arguments = ["prune", "--input", f"{tmp_path}/in", "--output", f"{tmp_path}/other", *other]
    assert main([*arguments, "--weigh.quota", "uniform"]) == 0
    asked = PruneConfig(
        input=InputConfig(path=f"{tmp_path}/in"),
        output=f"{tmp_path}/third",
        keep_fraction=0.2,
        scores_from=f"{tmp_path}/out",
    )
    taken = {name: pq.read_table(tmp_path / "other" / name) for name in ("scores", "quarantine", "selection")}
    assert taken["scores"].sort_by("sample_id").equals(scores)
    assert taken["quarantine"].equals(pq.read_table(tmp_path / "out" / "quarantine"))
    np.testing.assert_array_equal(taken["selection"].sort_by("sample_id")["hardness"], columns["aum"])
    assert pc.sum(taken["selection"]["keep"]).as_py() == 40
    found = json.loads((tmp_path / "other" / "manifest.json").read_text())
    assert found["ispl"]["threshold"] == pytest.approx(thresholds[2])
    assert (found["seed"], found["proxy"]["seed"], found["scores_from"]) == (3, 0, f"{tmp_path}/out")
    kept = [set(table.filter(pc.field("keep"))["key"].to_pylist()) for table in (taken["selection"], selection)]
    assert len(kept[0] & kept[1]) < 40  # by another score and seed
    assert found["scoring_cost"] == manifest["scoring_cost"]
    assert main([*arguments, "--weigh.scheme", "hard"]) == 2  # the proxy learned by another
    with pytest.raises(ValueError, match=r"made otherwise \(weigh.scheme: 'hard' here, 'linear' there\)"):
        reuse.settings(replace(asked, weigh=WeighConfig(scheme="hard")))
    made = replace(asked, scores_from="", rounds=3, weigh=WeighConfig(scheme="hard", quota="ispl"))
    store = RunStore(f"{tmp_path}/out")
    store.write_json("config.json", to_dict(made))
    settled = reuse.settings(replace(asked, output=f"{tmp_path}/third", weigh=WeighConfig(quota="uniform")))
    assert (settled.weigh.scheme, settled.weigh.quota) == ("hard", "uniform")


def test_strings_hugging_face_structs_class_names_and_a_class_of_one(digits, weights_file, tmp_path):
    # One seven is left: it is kept.
    first_seven = digits["label"].to_pylist().index(7)
    digits = digits.filter((pc.field("label") != 7) | (pc.field("name") == digits["name"][first_seven]))
    names = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
    table = pa.table(
        {
            "picture": pa.array(
                [{"bytes": image, "path": f"{row}.png"} for row, image in enumerate(digits["image"].to_pylist())],
                schema.IMAGE,
            ),
            "word": [names[label] for label in digits["label"].to_pylist()],
        }
    )
    path = write_shards(table, tmp_path / "in", 2)
    columns = ["--input.image-column", "picture", "--input.label-column", "word", "--input.class-names", *names]
    assert prune(path, tmp_path / "out", weights_file, *columns) == 0
    subset = pq.read_table(tmp_path / "out" / "subset")
    rows = digits.take(pa.array([int(image["path"].removesuffix(".png")) for image in subset["image"].to_pylist()]))
    assert [image["bytes"] for image in subset["image"].to_pylist()] == rows["image"].to_pylist()
    assert subset["label"].to_pylist() == rows["label"].to_pylist()
    assert json.loads(subset.schema.metadata[b"class_names"]) == names
    assert 7 in subset["label"].to_pylist()


def test_images_of_every_kind_are_scored_and_kept_as_they_are(digits, weights_file, tmp_path):
    """CMYK, grey, palette, 16 bits, a PNG that is called .jpg: none is quarantined, and none is encoded anew."""
    encoded = [{"bytes": image, "path": f"{row}.jpg"} for row, image in enumerate(digits["image"].to_pylist()[:60])]
    kinds = {"CMYK": "JPEG", "L": "JPEG", "P": "PNG", "I;16": "PNG", "RGBA": "PNG", "1": "PNG"}
    for row, (mode, kind) in enumerate(kinds.items()):
        opened = Image.open(io.BytesIO(encoded[row]["bytes"]))
        if mode == "I;16":
            opened = Image.fromarray(np.asarray(opened).astype(np.uint16) * 257)
        stream = io.BytesIO()
        (opened if mode == "I;16" else opened.convert(mode)).save(stream, kind)
        encoded[row]["bytes"] = stream.getvalue()
        assert Image.open(io.BytesIO(stream.getvalue())).mode == mode
    table = pa.table({"image": pa.array(encoded, schema.IMAGE), "label": digits["label"].slice(0, 60)})
    assert prune(write_shards(table, tmp_path / "in", 1), tmp_path / "out", weights_file, "--keep-fraction", "1") == 0
    counts = json.loads((tmp_path / "out" / "manifest.json").read_text())["counts"]
    assert counts == {"input": 60, "scored": 60, "kept": 60, "dropped": 0, "quarantined": 0}
    assert pq.read_table(tmp_path / "out" / "subset").sort_by("sample_id")["image"].to_pylist() == encoded


@pytest.mark.parametrize(
    ("break_it", "message"),
    [
        (lambda folder, table: None, "there is no"),
        (lambda folder, table: folder.mkdir(), "holds no .parquet file"),
        (
            lambda folder, table: write_shards(table.rename_columns(["image", "target", "name"]), folder, 1),
            "has no column 'label' (it has: image, target, name). Name it with --input.label-column.",
        ),
        (
            lambda folder, table: (write_shards(table, folder, 2) / "train-00001.parquet").write_bytes(b"PAR1 no more"),
            "shard train-00001.parquet cannot be read",
        ),
        (
            lambda folder, table: write_shards(table.filter(pc.field("label") == 0), folder, 1),
            "hardness needs at least two",
        ),
    ],
)
def test_bad_input_is_explained(tmp_path, digits, weights_file, capfd, break_it, message):
    break_it(tmp_path / "in", digits)
    assert prune(tmp_path / "in", tmp_path / "out", weights_file) == 2
    error = capfd.readouterr().err
    assert message in error
    assert "Traceback" not in error
    assert not (tmp_path / "out").exists()  # where it would be in the way of the command that was mended


@pytest.mark.parametrize(
    ("option", "message"),
    [
        (["--proxy.arch", "resnet81"], "no arch 'resnet81'"),
        (["--input.label-column", "target"], "has no column 'target'"),
        (["--input.image-column", "label"], "column 'label' is int64, not bytes"),
    ],
)
def test_a_wrong_name_is_told_before_ray_is_started(run, tmp_path, capfd, monkeypatch, option, message):
    monkeypatch.delattr(pipeline.runtime, "session")
    name, value = option
    for command in (
        ["prune", name, value, "--keep-fraction", "0.3"],
        ["train", name.replace("--proxy.", "--"), value],
    ):
        assert main([*command, "--input", f"{run.parent}/in", "--output", f"{tmp_path}/out"]) == 2
        assert message in capfd.readouterr().err
        assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("option", "message"),
    [
        (["--proxy.arch", "resnet81"], "no arch 'resnet81'"),
        (["--proxy.arch", "resnet18"], "do not fit ResNet"),
        (["--proxy.device", "cuda"], "this machine has no GPU"),
        (
            ["--weigh.class-floor", "20"],
            "a floor of 20 for each of 10 classes takes 200 samples, but the budget is 120",
        ),
        # In one message what will do: a fraction of one sample would be refused again, for the floors.
        (["--keep-fraction", "0.0001"], "the budget is 0 of 400. Pass keep_fraction of at least 0.025,"),
        (["--keep-fraction", "0.0001", "--weigh.class-floor", "0"], "comes to 0 samples. Pass at least 0.0025"),
    ],
)
def test_a_request_that_cannot_be_met_leaves_no_folder_behind(run, weights_file, tmp_path, capfd, option, message):
    assert prune(run.parent / "in", tmp_path / "out", weights_file, *option) == 2
    assert message in capfd.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_network_that_does_not_take_the_images_is_refused_before_anything_is_done(run, tmp_path, capfd):
    arguments = ["prune", "--input", f"{run.parent}/in", "--output", f"{tmp_path}/out", "--keep-fraction", "0.3"]
    assert main([*arguments, "--proxy.arch", "lenet", "--proxy.image-size", "8"]) == 2
    assert "lenet does not take images of 8 pixels: " in capfd.readouterr().err
    assert not (tmp_path / "out").exists()


def test_what_is_left_must_fit_the_cluster_also_when_a_run_goes_on(run, weights_file, tmp_path, capfd, monkeypatch):
    arguments = (run.parent / "in", tmp_path / "out", weights_file, "--input.id-column", "name")
    shutil.copytree(run, tmp_path / "out")
    monkeypatch.setattr(runtime, "node_shapes", lambda: ([{"CPU": 0.1, "memory": 2.0**40}], True))
    assert prune(*arguments) == 0  # all of it is done
    (tmp_path / "out" / "scores" / ".commit.json").unlink()
    (tmp_path / "out" / "subset" / ".commit.json").unlink()
    assert prune(*arguments) == 2
    assert "a scoring actor needs 1 CPU, 0 GPU on one node" in capfd.readouterr().err
    for file in (tmp_path / "out").rglob("*.parquet"):
        if "catalog" not in file.parts:
            file.unlink()
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=0))
    assert prune(*arguments) == 2
    assert "Make room, or choose another --output" in capfd.readouterr().err


def test_the_proxys_training_must_fit_the_cluster(run, tmp_path, capfd, monkeypatch):
    monkeypatch.setattr(runtime, "node_shapes", lambda: ([{"CPU": 0.1, "memory": 2.0**40}], True))
    arguments = ["--input", str(run.parent / "in"), "--output", str(tmp_path / "out"), "--keep-fraction", "0.3"]
    assert main(["prune", *arguments]) == 2
    assert "a training worker needs" in capfd.readouterr().err
    assert not (tmp_path / "out").exists()


def test_real_photographs(cifar10, weights_file, tmp_path):
    # 600 of CIFAR-10's test images, JPEG, with the class names that the file has in its metadata.
    table = pq.read_table(cifar10 / "test-00000-of-00001.parquet").slice(0, 600)
    path = write_shards(table, tmp_path / "in", 2, row_group_size=250)
    assert prune(path, tmp_path / "out", weights_file, "--input.id-column", "id") == 0
    subset = pq.read_table(tmp_path / "out" / "subset")
    by_id = dict(zip(table["id"].to_pylist(), table["image"].to_pylist(), strict=True))
    assert subset.num_rows == 180
    assert all(
        by_id[key] == image["bytes"]
        for key, image in zip(subset["key"].to_pylist(), subset["image"].to_pylist(), strict=True)
    )
    assert json.loads(subset.schema.metadata[b"class_names"]) == json.loads(table.schema.metadata[b"class_names"])


def test_the_advice_to_allow_more_bad_images_can_be_taken(digits, weights_file, tmp_path, capfd):
    # One in eighty; one in a hundred is what is put up with unless the user says otherwise.
    encoded, labels = digits["image"].to_pylist(), digits["label"].to_pylist()
    encoded[7:11], labels[11] = [b"no image"] * 4, None
    table = pa.table({"image": pa.array(encoded, pa.binary()), "label": pa.array(labels, pa.int64())})
    path = write_shards(table, tmp_path / "in", 2)
    assert prune(path, tmp_path / "out", weights_file) == 2
    message = capfd.readouterr().err
    counted = r"4 not an image, such as row (7|8|9|10) of \S+00000.parquet; 1 label is null, such as row 11 of \S+"
    assert re.search(rf"5 of 400 samples cannot be used so far \({counted}\)", message)
    assert "Raise --max-quarantine-fraction, and the same command goes on" in message
    assert prune(path, tmp_path / "out", weights_file, "--max-quarantine-fraction", "0.1") == 0
    counts = json.loads((tmp_path / "out" / "manifest.json").read_text())["counts"]
    assert counts == {"input": 400, "scored": 395, "kept": 118, "dropped": 277, "quarantined": 5}


def test_too_many_bad_images_are_told_after_the_first_epoch_of_the_proxy(digits, tmp_path, capfd):
    encoded = digits["image"].to_pylist()
    encoded[7:12] = [b"no image"] * 5
    path = write_shards(digits.set_column(0, "image", pa.array(encoded, pa.binary())), tmp_path / "in", 2)
    command = ["prune", "--input", str(path), "--output", f"{tmp_path}/out", "--keep-fraction", "0.3"]
    options = ["--proxy.arch", "resnet9", "--proxy.epochs", "2", "--score.num-workers", "1"]
    assert main([*command, *options]) == 2
    message = capfd.readouterr().err
    assert re.search(
        r"5 of 400 samples cannot be used so far \(5 image or label unusable, such as row .* not an", message
    )
    epochs = (tmp_path / "out" / "_proxy" / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["epoch"] for line in epochs] == [1]
    assert main([*command, *options, "--max-quarantine-fraction", "0.1"]) == 0
    assert "proxy     goes on after epoch 1 of 2\n" in capfd.readouterr().err
    assert json.loads((tmp_path / "out" / "proxy" / ".commit.json").read_text())["metrics"]["epoch"] == 2


@pytest.mark.parametrize("split", ["train", "eval"])
def test_classes_in_another_order_are_refused(digits, tmp_path, capfd, split):
    # The same integers mean other digits: nobody would see it in the accuracy until much later.
    names = {"a": b'["0","1","2","3","4","5","6","7","8","9"]', "b": b'["9","8","7","6","5","4","3","2","1","0"]'}
    for name, value in names.items():
        write_shards(digits.replace_schema_metadata({b"class_names": value}), tmp_path / name, 1)
    (tmp_path / "both").mkdir()
    for name in names:
        (tmp_path / "both" / f"{name}.parquet").write_bytes((tmp_path / name / "train-00000.parquet").read_bytes())
    paths = ["--input", f"{tmp_path}/{'both' if split == 'train' else 'a'}", "--output", f"{tmp_path}/out"]
    assert main(["train", *paths, "--eval", f"{tmp_path}/b"]) == 2
    assert "class" in capfd.readouterr().err
    assert not (tmp_path / "out" / "train").exists()


def test_a_full_disk_is_explained_and_the_run_goes_on_afterwards(run, weights_file, tmp_path, capfd, monkeypatch):

    output = shutil.copytree(run, tmp_path / "out")
    shutil.rmtree(output / "subset")
    write_subset = pipeline.write_subset

    def full(*arguments):
        raise OSError(28, "No space left on device", str(output))

    monkeypatch.setattr(pipeline, "write_subset", full)
    assert prune(run.parent / "in", output, weights_file, "--input.id-column", "name") == 1
    assert "no space left on the disk" in capfd.readouterr().err
    assert not (output / "subset").exists()
    monkeypatch.setattr(pipeline, "write_subset", write_subset)
    assert prune(run.parent / "in", output, weights_file, "--input.id-column", "name") == 0
    assert pq.read_table(output / "subset").num_rows == 120


def test_a_run_on_a_store_without_rename(run, weights_file, tmp_path, monkeypatch):
    """As on an object store: files are written in their place, and the commit files make them the stages'."""
    whole = RunStore.__init__

    def without_rename(self, uri):
        whole(self, uri)
        self.filesystem, self.root = pafs.SubTreeFileSystem("/", self.filesystem), self.root.lstrip("/")

    monkeypatch.setattr(RunStore, "__init__", without_rename)
    output = tmp_path / "out"
    (output / "selection").mkdir(parents=True)
    (output / "config.json").write_bytes((run / "config.json").read_bytes())
    (output / "selection" / "part-99999.parquet").write_bytes(b"of a dead attempt")
    assert prune(run.parent / "in", output, weights_file, "--input.id-column", "name") == 0
    for stage in ("selection", "subset"):
        found = pq.read_table(output / stage).sort_by("sample_id")  # what users read: nothing else is in the folder
        assert found.equals(pq.read_table(run / stage).sort_by("sample_id"))
    assert not (output / "_staging").exists()


def test_what_a_host_program_does_with_sigterm_is_its_own_again(tmp_path, monkeypatch):
    def session():
        signal.signal(signal.SIGTERM, pipeline.runtime._stop)  # as one does that starts a Ray of its own
        return contextlib.nullcontext()

    monkeypatch.setattr(pipeline.runtime, "session", session)
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(ValueError, match="whatever"), pipeline._only_writer(RunStore(str(tmp_path / "out")), 60):
        assert signal.getsignal(signal.SIGTERM) is pipeline.runtime._stop
        raise ValueError("whatever")
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_folder_that_another_run_is_writing_is_refused(run, weights_file, tmp_path, capfd):
    stopped = []
    with lease.hold(RunStore(str(tmp_path / "out")), stopped.append):
        assert prune(run.parent / "in", tmp_path / "out", weights_file) == 2
        assert [path.name for path in (tmp_path / "out").iterdir()] == [lease.LEASE]  # nothing was touched
    assert "is being written by another run (" in capfd.readouterr().err
    assert not stopped


def test_only_who_holds_the_run_writes_its_rounds(tmp_path):
    config = PruneConfig(input=InputConfig(path="in"), output=str(tmp_path / "run"), keep_fraction=0.3, rounds=3)
    store = RunStore(config.output)
    store.confirm = lambda: (_ for _ in ()).throw(StoppedError("taken over"))
    for of_round in proxies.round_stores(config, store):
        with pytest.raises(StoppedError):
            of_round.begin("scores")
        with pytest.raises(StoppedError):
            of_round.commit("scores", {})
    assert not (tmp_path / "run").exists()


# Guard rails are in force: what each does in all cases is tested where it is.


def test_a_run_that_stands_still_is_stopped(tmp_path, digits, weights_file, monkeypatch, capfd):
    monkeypatch.setattr(pipeline, "_begin", lambda *_: time.sleep(60))
    path = write_shards(digits, tmp_path / "in", 1)
    started = time.monotonic()
    assert prune(path, tmp_path / "out", weights_file, "--stall-timeout", "1") == 1
    assert time.monotonic() - started < 30
    assert "nothing was finished in 1 s" in capfd.readouterr().err


@pytest.mark.parametrize("verb", ["prune", "train"])
def test_a_cluster_that_does_not_see_the_output_is_refused(verb, tmp_path, digits, weights_file, monkeypatch, capfd):
    """Who has several nodes asks them before anything is done; what they answer is tested in test_preflight.py."""
    (here,) = ray.nodes()
    monkeypatch.setattr(ray, "nodes", lambda: [here, here | {"NodeID": "f" * 56, "NodeManagerHostname": "far"}])
    asked = []

    def ask(store, source, nodes, token):
        asked.append(list(nodes.values()))
        raise InputError("1 of 2 nodes do not see the output")

    monkeypatch.setattr(preflight, "_ask_nodes", ask)
    path = write_shards(digits, tmp_path / "in", 1)
    if verb == "prune":
        status = prune(path, tmp_path / "out", weights_file)
    else:
        status = main(["train", "--input", str(path), "--output", str(tmp_path / "out"), "--epochs", "1"])
    assert status == 2
    assert asked == [[here["NodeManagerHostname"], "far"]]
    assert "1 of 2 nodes do not see the output" in capfd.readouterr().err
    assert not (tmp_path / "out").exists()


def test_images_that_are_not_there_are_told_of_before_anything_is_trained(digits, tmp_path, capfd):
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    paths = pa.array([{"bytes": None, "path": name} for name in digits["name"].to_pylist()], kind)
    path = write_shards(digits.set_column(0, "image", paths), tmp_path / "in", 1)
    arguments = ["prune", "--input", str(path), "--output", f"{tmp_path}/out", "--keep-fraction", "0.3"]
    assert main(arguments) == 2
    told = capfd.readouterr().err
    assert "8 of 400 samples cannot be used so far (8 no image bytes), more than" in told
    assert "proxy" not in told
    assert not (tmp_path / "out").exists()


def test_classes_of_which_nothing_can_be_used_are_named(monkeypatch, capfd):
    found = SimpleNamespace(table=pa.table({"label": [0, 3]}))
    monkeypatch.setattr(pipeline.weighing, "read", lambda store: found)
    pipeline._tell_of_lost_classes(catalog_of((5, 2, 0, 1, 1), 9), None)
    assert (
        capfd.readouterr().err == "warning   nothing is kept of classes of which no image can be used: b (2), e (1)\n"
    )
    pipeline._tell_of_lost_classes(catalog_of((5, 0, 0, 1), 6), None)
    assert capfd.readouterr().err == ""
