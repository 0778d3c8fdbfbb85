"""razor_ray makes a labelled image dataset smaller without making the models trained on it worse.

A run is five stages, each a table in and a table out:

    catalog    what the input holds: a row per shard
    score      how hard each sample is: one forward pass of a proxy model
    weigh      how many samples each class keeps: inverse self-paced weights, effective numbers, exact quotas
    sample     which samples of a class: clusters, wrong labels set aside, the too easy and too hard thinned
    subset     the kept images, as Parquet

Nothing is imported here, so that ``import razor_ray.weights`` does not load Ray.
"""

__version__ = "0.1.0"
