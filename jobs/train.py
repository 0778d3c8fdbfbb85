"""`ray job submit --working-dir . -- python jobs/train.py ...`: the arguments of `razor-ray train`."""

import sys

from razor_ray.cli import run

if __name__ == "__main__":
    sys.exit(run("train", sys.argv[1:]))
