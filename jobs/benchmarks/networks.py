"""A network for benchmarks of everything but the network."""

from torch import nn


def tiny(num_classes: int) -> nn.Module:
    """So small that reading and decoding take nearly all of the time: `--arch jobs.benchmarks.networks:tiny`."""
    return nn.Sequential(nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(48, num_classes))
