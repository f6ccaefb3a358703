"""Stores: the same claims for a local folder and for two real S3 servers that differ."""

from __future__ import annotations

import http.server
import os
import pickle
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from shards.errors import CorruptObjectError, MissingObjectError, StoreError, UnreachableStoreError
from shards.store import LocalStore, S3Store, Store, files, open_store, retry, s3

BLOCK = os.urandom(3000)


def test_what_is_written_is_read(store: Store):
    store.write("a/b/c.bin", BLOCK)
    assert store.read("a/b/c.bin") == BLOCK
    assert store.read_range("a/b/c.bin", 1000, 500) == BLOCK[1000:1500]
    assert store.exists("a/b/c.bin")
    assert not store.exists("a/b")


def test_an_empty_object_is_an_object(store: Store):
    store.write("empty", b"")
    assert store.exists("empty")
    assert store.read("empty") == b""


def test_objects_are_written_once(store: Store):
    store.write("key", BLOCK)
    store.write("key", BLOCK)
    with pytest.raises(StoreError, match="key already holds other bytes"):
        store.write("key", BLOCK[:-1] + b"x")
    with pytest.raises(StoreError, match="key already holds other bytes"):
        store.write("key", b"short")
    assert store.read("key") == BLOCK


@pytest.mark.parametrize("block", [1000, 1 << 20])
def test_files_are_written_once_too(
    store: Store, tmp_path: Path, block: int, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(files, "BLOCK", block)
    file = tmp_path / "file"
    file.write_bytes(BLOCK)
    store.write_file("f", file)
    store.write_file("f", file)
    file.write_bytes(BLOCK[:-1] + b"x")
    with pytest.raises(StoreError, match="already holds other bytes"):
        store.write_file("f", file)
    file.write_bytes(BLOCK + b"longer" * 500)
    with pytest.raises(StoreError, match="already holds other bytes"):
        store.write_file("f", file)
    assert store.read("f") == BLOCK


def test_a_file_of_many_parts_arrives_whole(each_store: Store, tmp_path: Path):
    file, back = tmp_path / "large", tmp_path / "back"
    file.write_bytes(os.urandom(20 << 20))  # above boto3's threshold for parts
    each_store.write_file("large", file)
    each_store.write_file("large", file)
    each_store.download("large", back)
    assert back.read_bytes() == file.read_bytes()
    assert each_store.read_range("large", (20 << 20) - 7, 7) == file.read_bytes()[-7:]


def test_listing_is_sorted_and_relative(store: Store):
    for key in ("b/2", "b/1", "a", "bb"):
        store.write(key, b"x")
    assert store.list() == ["a", "b/1", "b/2", "bb"]
    assert store.list("b/") == ["b/1", "b/2"]
    assert store.list("b") == ["b/1", "b/2", "bb"]
    assert store.list("nothing/") == []


def test_listing_passes_a_page(store: Store, monkeypatch: pytest.MonkeyPatch):
    if isinstance(store, S3Store):
        connection = store._connection()
        paginator = connection.get_paginator("list_objects_v2")
        monkeypatch.setattr(connection, "get_paginator", lambda _: _Pages(paginator))
    for number in range(7):
        store.write(f"n/{number}", b"x")
    assert store.list("n/") == [f"n/{number}" for number in range(7)]


class _Pages:
    """The real paginator, asking for three keys at a time."""

    def __init__(self, paginator):
        self._paginator = paginator

    def paginate(self, **query):
        return self._paginator.paginate(**query, PaginationConfig={"PageSize": 3})


def test_deleting_is_idempotent(store: Store):
    store.write("gone", b"x")
    store.delete("gone")
    store.delete("gone")
    assert not store.exists("gone")


def test_a_missing_object_is_told_from_a_broken_store(store: Store, tmp_path: Path):
    with pytest.raises(MissingObjectError, match="no/such"):
        store.read("no/such")
    with pytest.raises(MissingObjectError):
        store.download("no/such", tmp_path / "x")
    assert not (tmp_path / "x").exists()


def test_a_range_beyond_the_end_is_refused(store: Store):
    store.write("short", BLOCK)
    with pytest.raises((CorruptObjectError, StoreError), match="short"):  # servers differ in who notices
        store.read_range("short", 2900, 500)


def test_a_pointer_moves_and_keeps_its_checksum(store: Store, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(time, "sleep", lambda _: None)
    assert store.read_pointer("champion") is None
    store.write_pointer("champion", b"first")
    store.write_pointer("champion", b"second, longer")
    assert store.read_pointer("champion") == b"second, longer"
    sealed = store.read("champion")
    store.delete("champion")
    store.write("champion", sealed[:-1])
    with pytest.raises(CorruptObjectError, match="checksum"):
        store.read_pointer("champion")


def test_a_torn_pointer_is_read_again(tmp_path: Path):
    store = LocalStore(tmp_path)
    store.write_pointer("p", b"whole")
    whole = store.read("p")
    answers = iter([whole[:-2], b"", whole])
    store.read = lambda key: next(answers)  # type: ignore[method-assign]
    assert store.read_pointer("p") == b"whole"


def test_a_store_can_be_sent_to_another_process(each_store: Store):
    each_store.write("k", b"v")
    copy = pickle.loads(pickle.dumps(each_store))
    assert copy.uri == each_store.uri
    assert copy.read("k") == b"v"


@pytest.mark.parametrize("key", ["../escape", "a/../../b", "/etc/passwd", ""])
def test_a_key_cannot_leave_its_folder(tmp_path: Path, key: str):
    with pytest.raises(StoreError, match="not a key"):
        LocalStore(tmp_path).read(key)


def test_uris_name_their_store(tmp_path: Path):
    assert open_store("s3://bucket/some/prefix/").uri == "s3://bucket/some/prefix"
    assert open_store("s3://bucket/what?/no#1").uri == "s3://bucket/what?/no#1"
    assert open_store(f"file://{tmp_path}").uri == str(tmp_path)
    assert open_store(str(tmp_path)).uri == str(tmp_path)
    with pytest.raises(StoreError, match="gs://"):
        open_store("gs://bucket/x")
    with pytest.raises(StoreError, match="names no bucket"):
        open_store("s3:///x")


def test_a_killed_writer_leaves_nothing_half_written(tmp_path: Path):
    """kill -9 at many moments of writing: no key is ever seen with part of its bytes."""
    size = 8 << 20
    script = (
        "import sys; from pathlib import Path; from shards.store import LocalStore\n"
        f"store = LocalStore(Path(sys.argv[1])); data = b'x' * {size}\n"
        "for n in range(10**6): store.write(f'{n}', data); store.delete(f'{n - 2}')\n"
    )
    caught = 0
    for moment in range(8):
        folder = tmp_path / str(moment)
        process = subprocess.Popen([sys.executable, "-c", script, str(folder)])
        while not (folder / "1").exists():
            assert process.poll() is None
            time.sleep(0.001)
        time.sleep(0.003 * moment)
        process.send_signal(signal.SIGKILL)
        process.wait()
        caught += bool(list(folder.glob(".tmp-*")))
        store = LocalStore(folder)
        assert {len(store.read(key)) for key in store.list()} == {size}
        store.write("0", b"x" * size)
    assert caught > 0, "no kill fell into a write"


def test_a_place_that_cannot_be_written_is_said():
    store = LocalStore(Path("/sys/kernel/store"))  # closed even to root
    with pytest.raises(StoreError, match=r"/sys/kernel/store: .*(permitted|permission|Read-only)"):
        store.ensure_bucket()
    with pytest.raises(StoreError, match=r"/sys/kernel/store/key: "):
        store.write("key", b"x")


def test_a_file_where_a_folder_must_be_is_said(tmp_path: Path):
    (tmp_path / "taken").write_text("a file")
    with pytest.raises(StoreError, match="taken"):
        LocalStore(tmp_path / "taken").write("a/b", b"x")


def test_wrong_credentials_a_missing_bucket_and_a_dead_endpoint_are_told_apart(rclone, aws, monkeypatch):
    monkeypatch.setattr(time, "sleep", lambda _: None)
    aws.setenv("AWS_ENDPOINT_URL", rclone.endpoint)
    with pytest.raises(StoreError, match=f"{rclone.endpoint}.*no bucket 'absent'"):
        open_store("s3://absent/x").read("key")
    with pytest.raises(StoreError, match="no bucket 'absent'"):
        open_store("s3://absent/x").write("key", b"x")

    aws.setenv("AWS_SECRET_ACCESS_KEY", "wrongsecret")
    with pytest.raises(StoreError, match="AWS_SECRET_ACCESS_KEY"):
        open_store("s3://restoration/x").read("key")
    with pytest.raises(StoreError, match="AWS_SECRET_ACCESS_KEY"):
        open_store("s3://restoration/x").exists("key")

    aws.delenv("AWS_SECRET_ACCESS_KEY")
    aws.delenv("AWS_ACCESS_KEY_ID")
    with pytest.raises(StoreError, match="no credentials"):
        open_store("s3://restoration/x").read("key")


def test_an_endpoint_that_does_not_answer_is_named(aws, monkeypatch):
    monkeypatch.setattr(time, "sleep", lambda _: None)
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))  # bound, not listening: connections are refused
        endpoint = f"http://127.0.0.1:{held.getsockname()[1]}"
        aws.setenv("AWS_ENDPOINT_URL", endpoint)
        with pytest.raises(
            UnreachableStoreError, match=f"s3://bucket/p/key.*{endpoint} did not answer.*AWS_ENDPOINT_URL"
        ):
            open_store("s3://bucket/p").read("key")


def test_a_dead_endpoint_is_tried_for_seconds_and_no_bucket_is_looked_for_after_that(aws, monkeypatch):
    monkeypatch.setenv(retry.VARIABLE, "10")
    pauses: list[float] = []
    monkeypatch.setattr(time, "sleep", pauses.append)  # botocore's pauses would be counted too
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        aws.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{held.getsockname()[1]}")
        with pytest.raises(UnreachableStoreError, match=r"\d+ attempts"):
            open_store("s3://bucket/p").ensure_bucket()
    assert 0 < sum(pauses) < retry.DOUBTFUL_SECONDS


def test_a_busy_server_is_asked_again_and_so_is_one_that_withdraws_a_right(aws, monkeypatch, busy):
    pauses: list[float] = []
    monkeypatch.setattr(time, "sleep", pauses.append)
    monkeypatch.setenv(retry.VARIABLE, "10")
    endpoint, answers = busy
    aws.setenv("AWS_ENDPOINT_URL", endpoint)
    store = open_store("s3://bucket/p")
    answers[:] = [503, 500, 403, 429, 200]
    assert store.read("key") == b"ok"
    answers[:] = [501]
    with pytest.raises(StoreError, match="GetObject: HTTP 501"):
        store.read("key")
    pauses.clear()
    monkeypatch.setenv(retry.VARIABLE, "1")
    answers[:] = [403] * 999
    with pytest.raises(StoreError, match=r"HTTP 403.*s3:GetObject"):
        store.read("key")
    assert 40 < sum(pauses) <= 60
    pauses.clear()
    monkeypatch.setenv(retry.VARIABLE, "10")
    answers[:] = [503] * 9999
    with pytest.raises(UnreachableStoreError, match="503"):
        store.read("key")
    assert 570 < sum(pauses) <= 600
    assert max(pauses) <= 20


def test_a_right_that_this_process_never_had_is_named_in_seconds(aws, monkeypatch, busy, caplog):
    pauses: list[float] = []
    monkeypatch.setattr(time, "sleep", pauses.append)
    monkeypatch.setenv(retry.VARIABLE, "10")
    monkeypatch.setattr(retry, "_allowed", {("s3://bucket/p", "s3:PutObject")})
    endpoint, answers = busy
    aws.setenv("AWS_ENDPOINT_URL", endpoint)
    answers[:] = [403] * 999
    with pytest.raises(StoreError, match=r"HTTP 403.*s3:GetObject"):
        open_store("s3://bucket/p").read("key")
    assert sum(pauses) <= retry.DOUBTFUL_SECONDS
    assert "It needs the right s3:GetObject" in caplog.messages[0]


def test_the_pause_is_at_least_what_the_server_asks_for(aws, monkeypatch, busy):
    pauses: list[float] = []
    monkeypatch.setattr(time, "sleep", pauses.append)
    monkeypatch.setenv(retry.VARIABLE, "10")
    endpoint, answers = busy
    aws.setenv("AWS_ENDPOINT_URL", endpoint)
    answers[:] = [-503, 200]
    assert open_store("s3://bucket/p").read("key") == b"ok"
    assert pauses == [77.0]


@pytest.mark.parametrize("value", ["-1", "two", "inf", "nan", ""])
def test_a_budget_that_is_none_is_told(aws, monkeypatch, value: str):
    monkeypatch.setenv(retry.VARIABLE, value)
    with pytest.raises(StoreError, match=f"{retry.VARIABLE} is '{value}'"):
        open_store("s3://bucket/p").read("key")


def test_expired_credentials_are_read_again(aws, monkeypatch, busy, tmp_path: Path):
    """A role or another program replaces the file of credentials while a run goes on."""
    endpoint, answers = busy
    file = tmp_path / "credentials"
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        aws.delenv(name)
    aws.setenv("AWS_SHARED_CREDENTIALS_FILE", str(file))
    aws.setenv("AWS_ENDPOINT_URL", endpoint)
    file.write_text("[default]\naws_access_key_id = first\naws_secret_access_key = x\n")
    store = open_store("s3://bucket/p")
    answers[:] = [200]
    store.read("key")

    def pause(_: float) -> None:
        file.write_text("[default]\naws_access_key_id = second\naws_secret_access_key = x\n")

    monkeypatch.setattr(time, "sleep", pause)
    answers[:] = [400, 200]  # 400 is ExpiredToken there
    assert store.read("key") == b"ok"
    assert store._connection()._request_signer._credentials.access_key == "second"


def test_credentials_that_are_missing_while_they_are_renewed_end_nothing(
    aws, monkeypatch, busy, tmp_path: Path
):
    endpoint, answers = busy
    file = tmp_path / "credentials"
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        aws.delenv(name)
    aws.setenv("AWS_SHARED_CREDENTIALS_FILE", str(file))
    aws.setenv("AWS_ENDPOINT_URL", endpoint)
    text = "[default]\naws_access_key_id = one\naws_secret_access_key = x\n"
    file.write_text(text)
    store = open_store("s3://bucket/p")
    answers[:] = [200]
    store.read("key")
    renewing = iter([lambda: file.unlink(), lambda: None, lambda: file.write_text(text)])
    monkeypatch.setattr(time, "sleep", lambda _: next(renewing)())
    answers[:] = [400, 200]  # 400 is ExpiredToken there
    assert store.read("key") == b"ok"
    assert list(renewing) == []


def test_the_users_own_aws_configuration_is_honoured(aws, tmp_path: Path):
    file = tmp_path / "config"
    file.write_text(
        "[default]\nregion = eu-west-1\nretry_mode = adaptive\nmax_attempts = 7\n"
        "s3 =\n    addressing_style = virtual\n"
    )
    aws.setenv("AWS_CONFIG_FILE", str(file))
    client = S3Store("bucket")._connection()
    assert client.meta.region_name == "eu-west-1"
    assert client.meta.config.retries["mode"] == "adaptive"
    assert client.meta.config.retries["total_max_attempts"] == 7
    url = client.generate_presigned_url("get_object", {"Bucket": "bucket", "Key": "k"})
    assert url.startswith("https://bucket.s3.eu-west-1.amazonaws.com/k?")
    aws.delenv("AWS_CONFIG_FILE")
    plain = S3Store("bucket")._connection()
    assert plain.meta.config.retries == {"mode": "standard", "total_max_attempts": 1}
    assert "/bucket/k?" in plain.generate_presigned_url("get_object", {"Bucket": "bucket", "Key": "k"})


def test_an_endpoint_that_is_no_url_or_no_s3_server_is_said(aws, web):
    aws.setenv("AWS_ENDPOINT_URL", "nonsense")
    with pytest.raises(StoreError, match=r"s3://bucket/p/key.*AWS_ENDPOINT_URL"):
        open_store("s3://bucket/p").read("key")
    aws.setenv("AWS_ENDPOINT_URL", web)
    with pytest.raises(StoreError, match=r"not the answer of an S3 server: GetObject was answered"):
        open_store("s3://bucket/p").read_pointer("manifest")


@pytest.fixture
def web() -> Iterator[str]:
    """A web server that answers everything with a page."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Page)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def busy() -> Iterator[tuple[str, list[int]]]:
    """A server that answers with the statuses of a list, one after the other."""
    answers: list[int] = []

    class Busy(_Page):
        def do_GET(self):
            status = answers.pop(0)
            body = b"<Error><Code>ExpiredToken</Code></Error>" if status == 400 else b"ok"
            self.send_response(abs(status))
            if status < 0:
                self.send_header("Retry-After", "77")
            self.send_header("Content-Length", str(len(body)))
            self.send_header("Last-Modified", "Mon, 30 Nov 2026 00:06:31 GMT")
            self.send_header("ETag", '"a-2"')
            self.end_headers()
            self.wfile.write(body)

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Busy)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}", answers
    server.shutdown()
    thread.join()
    server.server_close()


class _Page(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        body = b"<html><body>Welcome</body></html>"
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args):
        pass


def test_a_bucket_is_made_when_it_is_not_there(rclone, aws):
    aws.setenv("AWS_ENDPOINT_URL", rclone.endpoint)
    store = open_store("s3://fresh-bucket/p")
    store.ensure_bucket()
    store.ensure_bucket()
    store.write("k", b"v")
    assert store.list() == ["k"]


def test_an_empty_range_is_nothing(store: Store):
    store.write("some", BLOCK)
    assert store.read_range("some", 10, 0) == b""


def test_large_bytes_go_in_parts_too(each_store: Store, monkeypatch: pytest.MonkeyPatch):
    data = os.urandom(11 << 20)
    monkeypatch.setattr(s3, "PART", 5 << 20)
    each_store.write("weights", data)
    each_store.write("weights", data)
    assert each_store.read("weights") == data


def test_a_body_that_is_cut_off_is_asked_for_again_and_never_kept(aws, monkeypatch, tmp_path: Path, cutting):
    monkeypatch.setattr(time, "sleep", lambda _: None)
    endpoint, answers = cutting
    aws.setenv("AWS_ENDPOINT_URL", endpoint)
    store = open_store("s3://bucket/p")
    answers[:] = [40, 40, 100]
    store.download("key", tmp_path / "whole")
    assert (tmp_path / "whole").read_bytes() == b"x" * 100
    answers[:] = [40] * 999
    with pytest.raises(UnreachableStoreError, match="s3://bucket/p/key"):
        store.download("key", tmp_path / "cut")
    assert [path.name for path in tmp_path.iterdir() if "whole" not in path.name] == []


@pytest.fixture
def cutting() -> Iterator[tuple[str, list[int]]]:
    """A server that announces 100 bytes and sends as many as a list says, one answer after the other."""
    answers: list[int] = []

    class Cutting(_Page):
        def do_GET(self):
            self.send_response(200)
            self.send_header("Content-Length", "100")
            self.send_header("Last-Modified", "Mon, 30 Nov 2026 00:06:31 GMT")
            self.send_header("ETag", '"a-2"')
            self.end_headers()
            self.wfile.write(b"x" * answers.pop(0))

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Cutting)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}", answers
    server.shutdown()
    thread.join()
    server.server_close()


def test_a_full_disk_is_said_and_leaves_nothing(tmp_path: Path):
    """A file system of one megabyte, in a mount namespace of its own."""
    script = (
        'mount -t tmpfs -o size=1m none "$1" && exec "$2" -c '
        "'import sys; from pathlib import Path; from shards.store import LocalStore\n"
        'store = LocalStore(Path(sys.argv[1])); store.write("small", b"x" * 1000)\n'
        'try: store.write("big", b"x" * (2 << 20))\n'
        "except Exception as error: print(type(error).__name__, error, store.list(), *Path(sys.argv[1]).iterdir())' "
        '"$1"'
    )
    inside = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", script, "sh", str(tmp_path)]
    ended = subprocess.run([*inside, sys.executable], capture_output=True, text=True)
    if "unshare" in ended.stderr or "mount:" in ended.stderr:
        # tests/conftest.py lists this reason
        pytest.skip(f"no file system can be mounted here: {ended.stderr.strip()}")  # containers may forbid it
    assert "StoreError" in ended.stdout, ended.stderr
    assert "No space left on device. Free some space. ['small']" in ended.stdout
    assert ended.stdout.strip().endswith(f"{tmp_path}/small")


def test_size_and_age_of_an_object_are_known(store: Store):
    before = time.time()
    store.write("a/b", b"12345")
    stat = store.stat("a/b")
    assert stat.size == 5
    assert int(before) <= stat.modified_unix <= time.time()  # S3 gives whole seconds
    with pytest.raises(MissingObjectError):
        store.stat("a/c")
