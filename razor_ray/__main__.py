"""`python -m razor_ray` is `razor-ray`, for where the interpreter is known and the folder of scripts is on no path."""

from razor_ray.cli import entry

if __name__ == "__main__":
    entry()
