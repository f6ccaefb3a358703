"""A test that CI does not run proves nothing, so a skip there is a failure unless its reason is listed."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from tests.claims import ROOT, run_command

TESTS = """
import pytest, unittest
def test_for_a_listed_reason(): pytest.skip("needs a CUDA GPU: torch sees none here")
@pytest.mark.skipif(True, reason="I did not feel like it")
def test_for_another(): ...
class TestCase(unittest.TestCase):
    @unittest.skipUnless(False, "some tool is missing")
    def test_of_unittest(self): ...
@pytest.mark.xfail
def test_that_is_expected_to_fail(): assert False
"""
MODULE = "import pytest\npytest.skip('a whole module', allow_module_level=True)"


@pytest.mark.parametrize(
    ("ci", "counts"), [("true", "1 failed, 1 skipped, 1 xfailed, 2 errors"), ("", "4 skipped, 1 xfailed")]
)
def test_ci_fails_where_a_test_is_skipped_without_a_listed_reason(
    tmp_path: Path, ci: str, counts: str
) -> None:
    (tmp_path / "conftest.py").write_text("from tests.conftest import *")
    (tmp_path / "test_skips.py").write_text(TESTS)
    (tmp_path / "test_module.py").write_text(MODULE)
    done = run_command(
        *(sys.executable, "-m", "pytest", "-c", "/dev/null", "--rootdir", tmp_path, tmp_path),
        *("-p", "no:cacheprovider", "--continue-on-collection-errors"),
        environment={**os.environ, "CI": ci, "PYTHONPATH": str(ROOT)},
    )
    assert f" {counts} in " in done.text.splitlines()[-1], done.text
    assert ("CI must not skip a test for this reason" in done.text) is bool(ci)
