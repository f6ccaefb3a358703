"""The doctor finds what is wrong, says what to do, and changes nothing."""

from __future__ import annotations

import http.server
import os
import sqlite3
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from orchestrator.cluster.local import ports, processes, s3_server
from orchestrator.config.starter import FIRST_LINE
from orchestrator.maintenance import doctor

ROOT = Path(__file__).parents[3]


def test_the_checks_of_this_very_machine_run_and_every_problem_has_a_remedy() -> None:
    findings = doctor.diagnose(ROOT)
    assert len({finding.name for finding in findings}) == len(findings) == 13
    assert all(finding.remedy for finding in findings if finding.status != "ok")
    assert not any(finding.remedy for finding in findings if finding.status == "ok")


def test_an_old_python_fails() -> None:
    assert doctor.python((3, 10, 4)).status == "fail"
    assert doctor.python((3, 11, 0)).status == "ok"


def project_with(tmp_path: Path, dependencies: str, constraints: str) -> Path:
    (tmp_path / "pyproject.toml").write_text(f"[project]\ndependencies = [{dependencies}]\n")
    (tmp_path / "constraints.txt").write_text(constraints)
    return tmp_path


def test_a_missing_package_fails_by_name(tmp_path: Path) -> None:
    elsewhere = "\"other-thing ; sys_platform == 'nowhere'\""
    finding = doctor.packages(project_with(tmp_path, f'"no-such-thing>=1", {elsewhere}', ""))
    assert (finding.status, finding.detail) == ("fail", "not installed: no-such-thing")


def test_another_version_than_pinned_is_a_warning(tmp_path: Path) -> None:
    project = project_with(tmp_path, '"pyyaml"', "# pins\nPyYAML==0.1\nnot-installed-at-all==3\n")
    finding = doctor.packages(project)
    assert finding.status == "warn"
    assert "PyYAML" in finding.detail
    assert "instead of 0.1" in finding.detail
    assert "not-installed-at-all" not in finding.detail


def test_a_machine_that_cannot_cut_jpeg_files_says_what_is_lost(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    missing = doctor.jpegtran()
    assert (missing.status, missing.remedy) == ("warn", "apt install libjpeg-turbo-progs")
    (tmp_path / "jpegtran").touch(mode=0o755)
    assert doctor.jpegtran().status == "ok"


def test_too_little_memory_fails_and_little_warns() -> None:
    assert [doctor.memory(gib << 30).status for gib in (1, 4, 16)] == ["fail", "warn", "ok"]


def test_a_job_file_without_its_bit_or_its_first_line_is_named(tmp_path: Path) -> None:
    good, no_bit, no_line = (tmp_path / name for name in ("good.yaml", "no_bit.yaml", "no_line.yaml"))
    for file in (good, no_bit):
        file.write_text(f"{FIRST_LINE}\nname: x\n")
    no_line.write_text("name: x\n")
    good.chmod(0o755)
    no_line.chmod(0o755)
    no_bit.chmod(0o644)
    assert doctor.job_files([good]).status == "ok"
    found = doctor.job_files([good, no_bit])
    assert "no_bit.yaml" in found.detail
    assert found.remedy == f"chmod +x {os.path.relpath(no_bit)}"
    assert "no_line.yaml" in doctor.job_files([good, no_line]).detail


@pytest.fixture
def server(tmp_path: Path) -> Iterator[s3_server.S3Server]:
    (tmp_path / "store" / "photographs").mkdir(parents=True)
    server = s3_server.new(None)
    process = s3_server.start(server, tmp_path / "store", tmp_path / "log", "test")
    yield server
    processes.stop([process], "", 5.0)


def test_the_store_of_this_shell_is_asked_with_its_credentials(server: s3_server.S3Server) -> None:
    environment = server.environment()
    finding = doctor.store(environment)
    assert (finding.status, finding.detail) == ("ok", f"{server.endpoint}, 1 bucket")
    wrong = doctor.store({**environment, "AWS_SECRET_ACCESS_KEY": "wrong"})
    assert wrong.status == "warn"
    assert "403" in wrong.detail
    assert "wrong" not in wrong.detail


def test_an_unreachable_store_is_a_warning_with_its_endpoint() -> None:
    endpoint = f"http://127.0.0.1:{ports.free_port()}"
    environment = {
        "AWS_ENDPOINT_URL": endpoint,
        "AWS_ACCESS_KEY_ID": "key",
        "AWS_SECRET_ACCESS_KEY": "secret",
    }
    finding = doctor.store(environment)
    assert finding.status == "warn"
    assert endpoint in finding.detail


def test_a_tracking_server_is_asked_and_its_password_not_shown() -> None:
    class Healthy(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200 if self.path == "/health" else 404)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    with http.server.HTTPServer(("127.0.0.1", 0), Healthy) as mlflow:
        threading.Thread(target=mlflow.serve_forever, daemon=True).start()
        port = mlflow.server_address[1]
        assert doctor.tracking(f"http://127.0.0.1:{port}").status == "ok"
        mlflow.shutdown()
    gone = doctor.tracking(f"http://127.0.0.1:{port}")
    assert gone.status == "warn"
    for password in ("pass", "pa/ss@pass"):
        assert "pass" not in doctor.tracking(f"postgresql://me:{password}@db/mlflow").detail


def test_a_damaged_tracking_file_is_found_and_a_good_one_left_alone(tmp_path: Path) -> None:
    good, damaged = tmp_path / "good.db", tmp_path / "damaged.db"
    connection = sqlite3.connect(good)
    connection.execute("CREATE TABLE runs (id INTEGER)")
    connection.commit()
    connection.close()
    before = good.read_bytes()
    damaged.write_bytes(b"this is no database" * 100)
    assert doctor.tracking(f"sqlite:///{good}").status == "ok"
    assert good.read_bytes() == before
    assert doctor.tracking(f"sqlite:///{damaged}").status == "warn"
    assert "will be created" in doctor.tracking(f"sqlite:///{tmp_path}/new.db").detail
    assert not (tmp_path / "new.db").exists()
