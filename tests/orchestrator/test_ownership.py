"""One owner at a time: of drivers that start together, of one that hangs, dies or comes back, and of one elsewhere."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from orchestrator import ownership
from orchestrator.errors import OwnedError
from orchestrator.ownership import FOLDER, Lease, Owner, newest_claim, next_claim, owned
from shards.errors import StoreError
from shards.store import LocalStore
from tests.claims import wait_until


@pytest.fixture
def folder(tmp_path: Path) -> LocalStore:
    return LocalStore(tmp_path / "run")


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same rules, a hundred times faster."""
    monkeypatch.setattr(ownership, "RENEW_SECONDS", 0.02)
    monkeypatch.setattr(ownership, "LEASE_SECONDS", 0.6)
    monkeypatch.setattr(ownership, "_POLL_SECONDS", 0.005)


@pytest.fixture
def elsewhere() -> Owner:
    """An owner whose process nobody here can look up."""
    return replace(Owner.here(), host="node-7", process="another-boot:1:2", submission="raysubmit_1")


@pytest.fixture
def other_process() -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    yield process
    process.kill()
    process.communicate()


def owner_of(pid: int) -> Owner:
    machine = Owner.here().process.rpartition(":")[0].rpartition(":")[0]
    return replace(Owner.here(), pid=pid, process=f"{machine}:{pid}:{ownership._start_of(pid)}")


def claim(store: LocalStore, owner: Owner) -> str:
    key = next_claim(store)
    store.write_pointer(key, owner.to_json())
    return key


def test_of_many_that_start_together_one_at_a_time_owns(folder: LocalStore) -> None:
    inside, most, ended = 0, 0, []
    guard = threading.Lock()

    def work() -> None:
        nonlocal inside, most
        with owned(folder, "run r", lambda line: None, wait=True):
            with guard:
                inside += 1
                most = max(most, inside)
            threading.Event().wait(0.002)
            with guard:
                inside -= 1
        ended.append(True)

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert (most, len(ended)) == (1, 8)


@pytest.mark.parametrize("after_the_first", ["list", "write"])
def test_two_that_claim_at_once_never_both_own(
    folder: LocalStore, elsewhere: Owner, monkeypatch: pytest.MonkeyPatch, after_the_first: str
) -> None:
    """The rival's claim appears in every gap between our own requests; both numbers are the same."""
    rival = f"{FOLDER}/000001-{'f' * 32 if after_the_first == 'list' else '0' * 32}.json"
    name = {"list": "list", "write": "write_pointer"}[after_the_first]
    original = getattr(LocalStore, name)

    def then_the_rival(self: LocalStore, *arguments: object) -> object:
        result = original(self, *arguments)
        monkeypatch.setattr(LocalStore, name, original)
        self.write_pointer(rival, elsewhere.to_json())
        return result

    monkeypatch.setattr(LocalStore, name, then_the_rival)
    renewing = threading.Event()
    thread = threading.Thread(target=keep_alive, args=(folder, rival, elsewhere, renewing))
    thread.start()
    try:
        with (
            pytest.raises(OwnedError, match="node-7"),
            owned(folder, "run r", lambda line: None),
        ):
            raise AssertionError("two own it")
    finally:
        renewing.set()
        thread.join()
    assert newest_claim(folder) == rival, "ours is withdrawn"


def keep_alive(store: LocalStore, key: str, owner: Owner, ended: threading.Event) -> None:
    renewed = 0
    while not ended.wait(0.01):
        if store.exists(key):
            renewed += 1
            store.write_pointer(key, replace(owner, renewed=renewed).to_json())


def test_a_second_driver_hears_at_once_who_owns_the_run_and_how_to_watch_or_stop_it(
    folder: LocalStore, other_process: subprocess.Popen[bytes]
) -> None:
    claim(folder, replace(owner_of(other_process.pid), submission="raysubmit_42"))
    with pytest.raises(OwnedError) as error, owned(folder, "run r", print, wait=False):
        pass
    told = str(error.value)
    for needed in (
        "run r",
        f"process {other_process.pid}",
        "ray job logs raysubmit_42 --follow",
        "ray job stop raysubmit_42",
        "--wait",
    ):
        assert needed in told
    with pytest.raises(OwnedError) as error, owned(folder, "run r", print):
        pass
    assert "--wait" not in str(error.value), "the caller has no such option"


def test_an_owner_of_this_machine_that_was_killed_is_replaced_at_once(
    folder: LocalStore, other_process: subprocess.Popen[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ownership, "LEASE_SECONDS", 3600)
    old = claim(folder, owner_of(other_process.pid))
    other_process.kill()  # it stays a zombie until it is waited for
    wait_until(lambda: not ownership._start_of(other_process.pid), "the process ends")
    with owned(folder, "run r", print):
        assert newest_claim(folder) > old
        assert not folder.exists(old)


def test_a_process_that_has_the_id_of_a_dead_owner_is_not_taken_for_it(
    folder: LocalStore, other_process: subprocess.Popen[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ownership, "LEASE_SECONDS", 3600)
    here = owner_of(other_process.pid)
    claim(folder, replace(here, process=here.process + "0"))
    with owned(folder, "run r", print):
        pass


@pytest.mark.parametrize(
    "content", [None, b"", b"{}", b"[1]"], ids=["silent", "empty", "no fields", "a list"]
)
def test_an_owner_elsewhere_that_gives_no_sign_of_life_is_replaced(
    folder: LocalStore, elsewhere: Owner, content: bytes | None
) -> None:
    old = claim(folder, elsewhere)
    if content is not None:
        folder.write_pointer(old, content)
    told: list[str] = []
    with owned(folder, "run r", told.append):
        assert newest_claim(folder) > old
    assert len(told) == 1
    assert "looking for a sign of life" in told[0]


def test_a_driver_that_waits_begins_when_the_owner_releases(folder: LocalStore) -> None:
    order: list[str] = []
    entered = threading.Event()

    def second() -> None:
        with owned(folder, "run r", lambda line: entered.set(), wait=True):
            order.append("second")

    with owned(folder, "run r", print):
        thread = threading.Thread(target=second)
        thread.start()
        assert entered.wait(30), "the second one says that it waits"
        order.append("first")
    thread.join(30)
    assert order == ["first", "second"]


def test_an_owner_that_was_suspended_stops_when_it_comes_back(folder: LocalStore, elsewhere: Owner) -> None:
    lost = threading.Event()
    with owned(folder, "run r", print, on_lost=lost.set) as lease:
        lease.check()
        successor = claim(folder, elsewhere)
        assert lost.wait(30)
        with pytest.raises(OwnedError, match="taken over by job raysubmit_1"):
            lease.check()
    assert Owner.from_json(folder.read_pointer(successor) or b"") == elsewhere, "the successor's claim stays"


@pytest.mark.parametrize("looks", [1, 5])
def test_a_claim_that_is_withdrawn_at_once_or_late_takes_nothing_over(
    folder: LocalStore, elsewhere: Owner, monkeypatch: pytest.MonkeyPatch, looks: int
) -> None:
    monkeypatch.setattr(ownership, "RENEW_SECONDS", 3600)
    left = looks
    with owned(folder, "run r", print) as lease:
        key = claim(folder, elsewhere)

        class Withdrawing(threading.Event):
            def wait(self, timeout: float | None = None) -> bool:
                nonlocal left
                left -= 1
                if left == 0:
                    folder.delete(key)
                return False

        monkeypatch.setattr(lease, "_ended", Withdrawing())
        lease.check()
        assert left == 0
        monkeypatch.undo()


@pytest.mark.parametrize("sign", ["renewed", "released"])
def test_a_claim_with_a_sign_of_life_takes_over_at_once(
    folder: LocalStore, elsewhere: Owner, monkeypatch: pytest.MonkeyPatch, sign: str
) -> None:
    monkeypatch.setattr(ownership, "RENEW_SECONDS", 3600)
    with owned(folder, "run r", print) as lease:
        claim(
            folder, replace(elsewhere, renewed=1) if sign == "renewed" else replace(elsewhere, released=True)
        )
        with pytest.raises(OwnedError, match="taken over"):
            lease.check()


@pytest.mark.parametrize("error", [StoreError("no answer"), KeyError("an answer that boto does not expect")])
def test_a_store_that_fails_for_a_while_takes_nothing_from_the_owner(
    folder: LocalStore, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    failed = threading.Event()

    def fail(*arguments: object) -> None:
        failed.set()
        raise error

    with owned(folder, "run r", print) as lease:
        with monkeypatch.context() as patch:
            patch.setattr(LocalStore, "write_pointer", fail)
            assert failed.wait(30)
        lease.check()
        key = newest_claim(folder)
        wait_until(lambda: renewals(folder, key) > 0, "it is renewed again")


def renewals(store: LocalStore, key: str) -> int:
    return Owner.from_json(store.read_pointer(key) or b"").renewed


def test_a_driver_that_failed_leaves_the_run_to_the_next(folder: LocalStore) -> None:
    with pytest.raises(ZeroDivisionError), owned(folder, "run r", print):
        raise ZeroDivisionError
    with owned(folder, "run r", print):
        assert newest_claim(folder).startswith(f"{FOLDER}/000002-")


def test_stray_files_among_the_claims_are_ignored(folder: LocalStore) -> None:
    for name in (".DS_Store", "999999.json", "notes.txt", f"000009-{'0' * 32}.json.bak"):
        folder.write(f"{FOLDER}/{name}", b"?")
    with owned(folder, "run r", print):
        assert newest_claim(folder).startswith(f"{FOLDER}/000001-")


def test_a_lease_is_a_thread_that_ends_with_it(folder: LocalStore) -> None:
    with owned(folder, "run r", print) as lease:
        assert isinstance(lease, Lease)
        assert any(thread.name == "lease" for thread in threading.enumerate())
    assert not any(thread.name == "lease" for thread in threading.enumerate())
