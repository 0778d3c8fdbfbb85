"""The rule for real data: a test that wants some is skipped where it is absent, but not in CI."""

from __future__ import annotations

import pytest

from tests.conftest import real_data


def test_absent_data_is_a_skip_here_and_a_failure_in_ci(monkeypatch):
    monkeypatch.delenv("CI", raising=False)
    with pytest.raises(pytest.skip.Exception, match="no real data at .*nowhere"):
        real_data("nowhere")
    monkeypatch.setenv("CI", "true")
    with pytest.raises(pytest.fail.Exception, match="CI must have the real data at .*nowhere"):
        real_data("nowhere")
