"""docs/reliability.md: a row that names a test names one that is there."""

import re
from pathlib import Path

ROOT = Path(__file__).parent.parent
TEXT = (ROOT / "docs" / "reliability.md").read_text(encoding="utf-8")
ROWS = [line for line in TEXT.splitlines() if line.startswith("|")][2:]


def test_every_row_names_its_test():
    assert len(ROWS) > 20
    for row in ROWS:
        named = row.split("|")[-2]
        assert "tests/" in named or "make chaos" in named, row
        assert row.count("|") == 5, row


def test_the_tests_are_there():
    for line in TEXT.splitlines():
        path = ""
        for named, name in re.findall(r"`(tests/[\w/]+\.py)?(?:::(\w+))?`", line):
            path = named or path  # '::test_x' is in the file that was named last
            if not (named or name):
                continue
            assert path and (ROOT / path).exists(), line
            assert not name or re.search(rf"^def {name}\(", (ROOT / path).read_text(encoding="utf-8"), re.MULTILINE), (
                name
            )
