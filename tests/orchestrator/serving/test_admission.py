from __future__ import annotations

from orchestrator.serving.admission import AdmissionControl


def test_it_admits_as_many_requests_as_its_capacity() -> None:
    admission = AdmissionControl(2)
    assert [admission.acquire() for _ in range(3)] == [True, True, False]
    admission.release()
    assert admission.acquire()
    assert admission.in_flight == 2


def test_retry_after_follows_the_mean_duration_and_the_number_of_replicas() -> None:
    admission = AdmissionControl(1)
    assert admission.retry_after(1) == 1
    admission.acquire()
    admission.release(30.0)
    assert admission.retry_after(1) == 30
    assert admission.retry_after(4) == 8
    admission.acquire()
    admission.release(1000.0)
    assert admission.retry_after(1) == 60
