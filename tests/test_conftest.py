"""What tests/conftest.py and the Makefile promise: no silent skip in CI, no test left out, a file in one process."""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path

import pytest

from tests.claims import ROOT, run_command

# The skips and the expected failure below are the input of the test: it runs pytest on this file.
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

FILES = """
import os, pathlib, pytest
@pytest.mark.parametrize("i", range(6))
def test_where_it_runs(i):
    pathlib.Path(__file__).with_suffix("." + os.environ["PYTEST_XDIST_WORKER"]).touch()
"""


def test_all_tests_of_a_file_run_in_one_process(tmp_path: Path) -> None:
    """pytest-xdist 3.8 reads the groups with pytest below 9.2 only, and says nothing where it ignores them."""
    (tmp_path / "conftest.py").write_text("from tests.conftest import *")
    for name in ("test_a", "test_b"):
        (tmp_path / f"{name}.py").write_text(FILES)
    done = run_command(
        *(sys.executable, "-m", "pytest", "-c", "/dev/null", "--rootdir", tmp_path, tmp_path),
        *("-p", "no:cacheprovider", "-n", "2", "--dist", "loadgroup"),
        environment={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert " 12 passed in " in done.text.splitlines()[-1], done.text
    assert sorted(path.stem for path in tmp_path.glob("*.gw*")) == ["test_a", "test_b"]


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


def test_every_test_that_starts_a_ray_head_is_in_a_folder_that_make_test_slow_reads() -> None:
    makefile = (ROOT / "Makefile").read_text()
    (folders,) = re.findall(r'-m "slow and cluster" (.+)', makefile)
    found = {file for file in (ROOT / "tests").rglob("test_*.py") if "mark.cluster" in file.read_text()}
    assert found - {Path(__file__)} == {
        file for file in found if any((ROOT / folder) in file.parents for folder in folders.split())
    }
    assert len(found) > 10
