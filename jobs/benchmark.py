"""How fast razor_ray is on this machine: each figure a ratio measured in one run, as a table and a line of JSON.

    python jobs/benchmark.py score  --input photographs/    # scoring against a bare loop and a DataLoader
    python jobs/benchmark.py sample                         # selection from as many scores as ImageNet has
    python jobs/benchmark.py scale  --input photographs/    # time and memory against the size of the data
    python jobs/benchmark.py decode --input photographs/    # JPEG decoders
    python jobs/benchmark.py train  --input photographs/    # Ray Train's ingest against a DataLoader

docs/performance.md has what they gave. Contenders take turns (A B C A B C), each in a process of its own; their
medians are compared.
"""

from __future__ import annotations

import json
import sys
from typing import Annotated

import tyro

from jobs.benchmarks.decoding import Decode
from jobs.benchmarks.ingest import Train
from jobs.benchmarks.measure import machine
from jobs.benchmarks.sampling import Sample
from jobs.benchmarks.scaling import Scale
from jobs.benchmarks.scoring import Score

Verb = (
    Annotated[Score, tyro.conf.subcommand("score")]
    | Annotated[Sample, tyro.conf.subcommand("sample")]
    | Annotated[Scale, tyro.conf.subcommand("scale")]
    | Annotated[Decode, tyro.conf.subcommand("decode")]
    | Annotated[Train, tyro.conf.subcommand("train")]
)


def main(arguments: list[str]) -> int:
    """Run one benchmark, and print its table and its line of JSON."""
    verb = tyro.cli(Verb, args=arguments, description=__doc__)
    table, result = verb.run()
    name = type(verb).__name__.lower()
    print(table)
    print(json.dumps({"benchmark": name, "machine": machine(), "arguments": arguments, **result}), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
