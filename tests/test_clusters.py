"""Clusters of one class: hand-worked classes, then rows and values that clustering could stumble over."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from numpy.testing import assert_array_equal
from sklearn.cluster import KMeans
from threadpoolctl import threadpool_info, threadpool_limits

from razor_ray import clusters
from razor_ray.clusters import cluster


def three_directions() -> tuple[np.ndarray, np.ndarray]:
    """Thirty samples, ten in each of three directions; the first direction is the hardest, the second the easiest."""
    direction = np.repeat(np.eye(3), 10, axis=0)
    length = np.tile(np.linspace(1, 9, 10), 3)[:, None]
    return np.repeat([0.9, 0.1, 0.5], 10), (direction * length).astype(np.float16)


def test_kmeans_by_hand():
    hardness, embedding = three_directions()
    found = cluster(hardness, embedding, clustering="kmeans", num_clusters=3, seed=0, label=0)
    assert_array_equal(found, np.repeat([2, 0, 1], 10))  # numbered from easy to hard; lengths do not matter
    assert found.dtype == np.int32


def test_kmeans_shrinks_to_the_size_of_the_class():
    hardness, embedding = three_directions()
    for num_samples, expected in [(30, 3), (29, 2), (19, 1), (1, 1)]:
        pick = np.arange(30).reshape(3, 10).T.ravel()[:num_samples]
        found = cluster(hardness[pick], embedding[pick], clustering="kmeans", num_clusters=20, seed=0, label=0)
        assert found.max() + 1 == expected


@pytest.mark.filterwarnings("error")
def test_kmeans_shrinks_to_the_number_of_distinct_rows():
    embedding = np.repeat(np.eye(2, 4, dtype=np.float32), 100, axis=0)
    embedding[150:] *= -0.0  # rows of zeros, some of them negative zeros: one more point, and no NaN
    found = cluster(np.arange(200.0), embedding, clustering="kmeans", num_clusters=20, seed=0, label=0)
    assert_array_equal(found, np.repeat([0, 1, 2], [100, 50, 50]))


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("embedding", [np.zeros((50, 4)), np.full((50, 4), 6e4), np.zeros((50, 0))])
def test_kmeans_of_equal_rows_is_one_cluster(embedding):
    found = cluster(np.arange(50.0), embedding.astype(np.float16), clustering="kmeans", num_clusters=5, seed=0, label=0)
    assert_array_equal(found, np.zeros(50))


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("scale", [1e-45, 1e-30, 1.0, 1e30])
def test_kmeans_takes_any_scale(scale):
    hardness, embedding = three_directions()
    embedding = (embedding > 0) * np.float32(scale)
    found = cluster(hardness, embedding, clustering="kmeans", num_clusters=3, seed=0, label=0)
    assert_array_equal(found, np.repeat([2, 0, 1], 10))


@pytest.mark.filterwarnings("error")
def test_kmeans_of_rows_an_ulp_apart():
    embedding = np.ones((100, 2), np.float32)
    embedding[::2, 0] += np.float32(2**-23)
    found = cluster(np.arange(100.0), embedding, clustering="kmeans", num_clusters=10, seed=0, label=0)
    assert_array_equal(np.unique(found), np.arange(found.max() + 1))  # no gaps


def test_kmeans_of_a_large_class_finds_its_centres_on_a_part(monkeypatch):
    rng = np.random.default_rng(0)
    of = rng.integers(0, 3, 5000)
    embedding = (np.eye(3)[of] + 0.1 * rng.standard_normal((5000, 3))).astype(np.float32)
    hardness = 0.3 * of + 0.1 * rng.random(5000)
    whole = cluster(hardness, embedding, clustering="kmeans", num_clusters=3, seed=0, label=0)
    assert_array_equal(whole, of)
    fitted = []
    fit = KMeans.fit

    def spy(self, rows, *arguments, **options):
        fitted.append(rows.copy())
        return fit(self, rows, *arguments, **options)

    monkeypatch.setattr(KMeans, "fit", spy)
    monkeypatch.setattr(clusters, "_MOST_FITTED", 600)
    monkeypatch.setattr(clusters, "_ASSIGNED_AT_ONCE", 999)
    assert_array_equal(cluster(hardness, embedding, clustering="kmeans", num_clusters=3, seed=0, label=0), of)
    assert fitted[0].shape == (600, 3)
    assert len(np.unique(fitted[0], axis=0)) == 600
    # Of all of the class, not of its beginning; and of another seed another part.
    places = np.flatnonzero((clusters._unit_rows(embedding)[:, None, 0] == fitted[0][:, 0]).any(axis=1))
    assert places.min() < 50 and places.max() > 4950
    cluster(hardness, embedding, clustering="kmeans", num_clusters=3, seed=1, label=0)
    assert not np.array_equal(fitted[0], fitted[1])


def test_kmeans_starts_from_seed_and_label():
    rng = np.random.default_rng(0)
    hardness, embedding = rng.random(400), rng.normal(size=(400, 8)).astype(np.float32)
    runs = [
        cluster(hardness, embedding, clustering="kmeans", num_clusters=10, seed=seed, label=label).tolist()
        for seed, label in [(0, 0), (0, 0), (1, 0), (0, 1)]
    ]
    assert runs[0] == runs[1] and runs[0] != runs[2] and runs[0] != runs[3] and runs[2] != runs[3]


def test_mean_shift_by_hand():
    # Two heaps of hardness; the easy one is 0, wherever its samples stand.
    rng = np.random.default_rng(0)
    hardness = np.concatenate([rng.normal(1.2, 0.05, 80), rng.normal(0.1, 0.05, 120)])
    found = cluster(hardness, None, clustering="mean_shift", num_clusters=20, seed=0, label=0)
    assert_array_equal(found, np.repeat([1, 0], [80, 120]))


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    "hardness",
    [[0.0], [0.5, 0.5, 0.5], [0.0, 1.0], [0.0] * 99 + [1.0], [1e8, 1e8 + 1, 1e8 + 2], np.geomspace(1e-30, 1, 50)],
)
def test_mean_shift_takes_any_spread(hardness):
    hardness = np.asarray(hardness, np.float64)
    found = cluster(hardness, None, clustering="mean_shift", num_clusters=20, seed=0, label=0)
    assert_array_equal(np.unique(found), np.arange(found.max() + 1))
    assert (np.diff(found[np.argsort(hardness)]) >= 0).all()  # clusters of a line are intervals


def test_no_clustering_is_one_cluster():
    assert_array_equal(cluster(np.arange(5.0), None, clustering="none", num_clusters=3, seed=0, label=0), np.zeros(5))


@pytest.mark.parametrize(
    ("embedding", "match"),
    [
        (None, "needs embeddings"),
        (np.full((30, 2), np.nan, np.float32), "30 of 30 embeddings hold NaN"),
        (np.full((30, 2), np.inf, np.float16), "65504"),
        (np.ones((30, 2)), "float16 or float32"),
        (np.ones(30, np.float32), "shape"),
        (np.ones((29, 2), np.float32), "one row per sample"),
    ],
)
def test_kmeans_refuses(embedding, match):
    with pytest.raises(ValueError, match=match):
        cluster(np.arange(30.0), embedding, clustering="kmeans", num_clusters=3, seed=0, label=7)


def test_kmeans_runs_on_one_thread(monkeypatch):
    # Sums by two threads differ in their last bits only, which seldom shows in the labels; so the pools are asked, too.
    from sklearn.cluster import KMeans

    fit_predict, num_threads = KMeans.fit_predict, []

    def recorded(self, rows):
        num_threads.extend(pool["num_threads"] for pool in threadpool_info())
        return fit_predict(self, rows)

    monkeypatch.setattr(KMeans, "fit_predict", recorded)
    hardness, embedding = three_directions()
    with threadpool_limits(2):
        cluster(hardness, embedding, clustering="kmeans", num_clusters=3, seed=0, label=0)
        outside = [pool["num_threads"] for pool in threadpool_info()]
    assert set(num_threads) == {1} and set(outside) == {2}


def test_clusters_do_not_depend_on_the_number_of_threads():
    program = """
import numpy as np
from razor_ray import clusters
from razor_ray.clusters import cluster
embedding = np.random.default_rng(0).normal(size=(3000, 64)).astype(np.float32)
found = cluster(np.arange(3000.0), embedding, clustering="kmeans", num_clusters=20, seed=0, label=0)
print(found.tobytes().hex())
"""
    outputs = {
        subprocess.run(
            [sys.executable, "-c", program],
            cwd=Path(__file__).parents[1],
            env=os.environ | {"OMP_NUM_THREADS": threads, "OPENBLAS_NUM_THREADS": threads},
            check=True,
            capture_output=True,
        ).stdout
        for threads in ("1", "2")
    }
    assert len(outputs) == 1
