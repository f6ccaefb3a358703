"""Cluster files: every field is one that its reader knows. Nothing here was ever applied to a cloud."""

from __future__ import annotations

import importlib
import json
import os
import re
import subprocess
from collections.abc import Iterator
from importlib.metadata import version
from importlib.resources import files
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from pydantic import ValidationError
from ray import serve
from ray.serve.schema import ServeDeploySchema

from orchestrator.config.loader import load_job
from orchestrator.serving.arguments import ApplicationArguments
from tests.claims import BIN, wait_until

CLUSTERS = Path("jobs/clusters")
KUBERAY = json.loads(Path(__file__).with_name("kuberay-v1.7.0.json").read_bytes())

POD_SPEC = {"containers", "nodeSelector", "terminationGracePeriodSeconds", "tolerations", "volumes"}
CONTAINER = {"env", "envFrom", "image", "name", "ports", "resources", "volumeMounts"}
"""Those of Kubernetes' core/v1 that are used: an unknown one is a slip."""


@pytest.fixture
def ray_job() -> dict[str, Any]:
    return dict(yaml.safe_load((CLUSTERS / "kuberay.yaml").read_text()))


def unknown(values: dict[str, Any], kind: str) -> set[str]:
    return set(values) - set(KUBERAY["fields"][kind])


def cluster_of(resource: dict[str, Any]) -> dict[str, Any]:
    """Return the cluster that a RayJob or a RayService starts."""
    spec = resource["spec"]
    return dict(spec["rayClusterSpec"] if resource["kind"] == "RayJob" else spec["rayClusterConfig"])


def groups(resource: dict[str, Any]) -> Iterator[dict[str, Any]]:
    cluster = cluster_of(resource)
    yield cluster["headGroupSpec"]
    yield from cluster["workerGroupSpecs"]


@pytest.mark.parametrize(("file", "kind"), [("kuberay", "RayJob"), ("kuberay-serve", "RayService")])
def test_every_field_is_kuberays(file: str, kind: str) -> None:
    resource = yaml.safe_load((CLUSTERS / f"{file}.yaml").read_text())
    assert (resource["apiVersion"], resource["kind"]) == (KUBERAY["apiVersion"], kind)
    cluster = cluster_of(resource)
    assert not unknown(resource["spec"], f"{kind}Spec")
    assert not unknown(cluster, "RayClusterSpec")
    assert not unknown(cluster["autoscalerOptions"], "AutoscalerOptions")
    assert not unknown(cluster["authOptions"], "AuthOptions")
    assert not unknown(cluster["headGroupSpec"], "HeadGroupSpec")
    assert not any(unknown(group, "WorkerGroupSpec") for group in cluster["workerGroupSpecs"])
    assert cluster["rayVersion"] == version("ray")
    assert cluster["authOptions"] == {"mode": "token"}
    for group in groups(resource):
        pod = group["template"]["spec"]
        assert set(pod) <= POD_SPEC
        assert all(set(container) <= CONTAINER for container in pod["containers"])
        assert all(isinstance(value, str) for value in group["rayStartParams"].values())


def test_the_submission_mode_is_one_of_kuberays(ray_job: dict[str, Any]) -> None:
    assert ray_job["spec"]["submissionMode"] in KUBERAY["submissionMode"]


def test_a_slip_in_a_field_would_be_found(ray_job: dict[str, Any]) -> None:
    assert unknown({**ray_job["spec"], "backOffLimit": 1}, "RayJobSpec") == {"backOffLimit"}


def test_the_head_is_safe_and_runs_no_worker(ray_job: dict[str, Any]) -> None:
    head, spot = groups(ray_job)
    assert head["rayStartParams"]["num-cpus"] == "0"
    assert head["serviceType"] == "ClusterIP"
    assert "tolerations" not in head["template"]["spec"]
    assert spot["minReplicas"] == 0


def test_a_workers_pod_holds_one_worker_of_the_job(ray_job: dict[str, Any]) -> None:
    _, spot = groups(ray_job)
    workers = load_job(ray_job["spec"]["entrypoint"].split()[-1]).workers
    asked = spot["template"]["spec"]["containers"][0]["resources"]["requests"]
    assert (float(asked["cpu"]), float(asked["nvidia.com/gpu"])) == (workers.cpus, workers.gpus)
    assert spot["maxReplicas"] == workers.max


def test_a_notice_leaves_time_to_drain_within_the_pods_grace(ray_job: dict[str, Any]) -> None:
    _, spot = groups(ray_job)
    pod = spot["template"]["spec"]
    (drain,) = (e for e in pod["containers"][0]["env"] if e["name"].endswith("DRAIN_TIMEOUT_S"))
    assert 60 <= int(drain["value"]) < pod["terminationGracePeriodSeconds"]


@pytest.fixture
def ray_service() -> dict[str, Any]:
    return dict(yaml.safe_load((CLUSTERS / "kuberay-serve.yaml").read_text()))


def test_the_applications_of_the_ray_service_are_valid_by_rays_own_schema(
    ray_service: dict[str, Any],
) -> None:
    config = yaml.safe_load(ray_service["spec"]["serveConfigV2"])
    (application,) = ServeDeploySchema.model_validate(config).applications
    module, _, name = application.import_path.partition(":")
    built = getattr(importlib.import_module(module), name)(application.args)
    assert isinstance(built, serve.Application)
    with pytest.raises(ValidationError):
        ServeDeploySchema.model_validate({"applications": [{"import_path": "no colon"}]})


def test_a_pod_of_the_ray_service_holds_a_replica_and_outlives_its_requests(
    ray_service: dict[str, Any],
) -> None:
    head, workers = groups(ray_service)
    (application,) = yaml.safe_load(ray_service["spec"]["serveConfigV2"])["applications"]
    settings = ApplicationArguments.parse(application["args"]).settings()
    pod = workers["template"]["spec"]
    asked = pod["containers"][0]["resources"]["requests"]
    assert settings.device == "cuda"
    assert (int(asked["cpu"]), asked["nvidia.com/gpu"]) == (settings.threads, "1")
    assert (workers["minReplicas"], workers["maxReplicas"]) == (settings.min_replicas, settings.max_replicas)
    assert pod["terminationGracePeriodSeconds"] > settings.timeout_seconds
    assert head["rayStartParams"]["num-cpus"] == "0"
    assert head["serviceType"] == "ClusterIP"


@pytest.mark.parametrize("cloud", ["aws", "gcp"])
def test_a_launcher_file_is_valid_by_rays_own_schema(cloud: str) -> None:
    config = yaml.safe_load((CLUSTERS / f"{cloud}.yaml").read_text())
    schema = json.loads(files("ray.autoscaler").joinpath("ray-schema.json").read_bytes())
    jsonschema.validate(config, schema)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({**config, "head_node": {}}, schema)
    assert config["provider"]["type"] == cloud
    assert config["head_node_type"] in config["available_node_types"]
    spot = config["available_node_types"]["spot-gpu"]
    workers = load_job("jobs/5deg.yaml").workers
    assert (spot["resources"]["CPU"], spot["resources"]["GPU"]) == (workers.cpus, workers.gpus)


@pytest.mark.parametrize("cloud", ["aws", "gcp"])
def test_no_launcher_opens_the_job_port(cloud: str) -> None:
    config = yaml.safe_load((CLUSTERS / f"{cloud}.yaml").read_text())
    (head,) = (command for command in config["head_start_ray_commands"] if "--head" in command)
    assert "--dashboard-host=127.0.0.1" in head
    assert all(
        "RAY_AUTH_MODE=token" in command
        for command in [head, *config["worker_start_ray_commands"]]
        if "ray start" in command
    )


def slurm_world(folder: Path) -> dict[str, str]:
    """A SLURM of stand-in commands that write down how they were called, and a `ray` and `python` that do too."""
    commands = {
        "scontrol": 'case $1 in show) echo node1; echo node2;; *) echo "scontrol $*" >>calls;; esac',
        "srun": 'case "$*" in *hostname*) echo 10.0.0.1;; *) echo "srun $*" >>calls;; esac',
        "ray": "exit 0",
    }
    (folder / ".venv/bin").mkdir(parents=True)
    for name, body in commands.items():
        path = folder / ".venv/bin" / name
        path.write_text(f"#!/bin/sh\n{body}\n")
        path.chmod(0o755)
    python = folder / ".venv/bin/python"
    python.write_text(
        "#!/bin/bash\nif [ $1 = -c ]; then printf secret; exit; fi\n"
        "until [ $(grep -c ^srun calls) = 2 ]; do sleep 0.05; done 2>/dev/null\n"  # they start in the background
        'echo "python $* at $RAY_ADDRESS" >>calls\n'
        "trap 'echo stopped >>calls; exit 143' TERM\n"
        '[ -z "$LONG" ] || { touch running; while :; do sleep 0.05; done; }\n'
    )
    python.chmod(0o755)
    slurm = {
        "JOB_ID": "7",
        "JOB_NODELIST": "node[1-2]",
        "CPUS_PER_TASK": "32",
        "GPUS_ON_NODE": "4",
        "NNODES": "2",
    }
    return {"PATH": os.environ["PATH"], **{f"SLURM_{name}": value for name, value in slurm.items()}}


def test_the_slurm_script_starts_a_cluster_on_all_nodes_and_runs_the_job(tmp_path: Path) -> None:
    environment = slurm_world(tmp_path)
    script = str((CLUSTERS / "slurm.sh").absolute())
    subprocess.run([script, "jobs/5deg.yaml", "--set", "seed=1"], cwd=tmp_path, env=environment, check=True)
    calls = (tmp_path / "calls").read_text()
    assert "ray start --head --node-ip-address=10.0.0.1 --port=20007 --dashboard-host=127.0.0.1" in calls
    assert "--num-cpus=32 --num-gpus=4" in calls
    assert (
        "--nodes=1 --ntasks=1 --cpus-per-task=32 --exclude=node1 ray start --address=10.0.0.1:20007" in calls
    )
    assert "python -m orchestrator run jobs/5deg.yaml --set seed=1 at 10.0.0.1:20007" in calls
    assert not list((tmp_path / ".mirage").iterdir())  # the token is gone


def test_a_preempted_slurm_job_stops_its_run_and_is_queued_again(tmp_path: Path) -> None:
    environment = {**slurm_world(tmp_path), "LONG": "1"}
    script = str((CLUSTERS / "slurm.sh").absolute())
    running = subprocess.Popen([script, "jobs/5deg.yaml"], cwd=tmp_path, env=environment)
    wait_until(lambda: (tmp_path / "running").exists() or running.poll() is not None, "the job runs")
    assert running.poll() is None
    running.terminate()
    assert running.wait(timeout=30) == 143
    calls = (tmp_path / "calls").read_text().splitlines()
    assert calls[-2:] == ["stopped", "scontrol requeue 7"]


def test_the_image_has_what_the_project_has() -> None:
    text = (CLUSTERS / "Dockerfile").read_text()
    copied = set(re.findall(r"^COPY (?:--chown=\S+ )?(.*) \S+$", text, re.M))
    names = {name for line in copied for name in line.split()}
    assert {"mirage", "shards", "orchestrator", "jobs", "constraints.txt"} <= names
    assert all(Path(name).exists() for name in names)


def test_the_slurm_script_is_clean() -> None:
    subprocess.run([BIN / "shellcheck", CLUSTERS / "slurm.sh"], check=True)
