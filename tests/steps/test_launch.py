"""Launching a TrainJob, against an HTTP server that speaks the Kubernetes API's routes for it."""

from __future__ import annotations

import json
import logging
import os
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from fake_kubernetes import FakeKubernetes, active, check, ended, failed_pod
from tiny import changed, sections, smoke_params

from cwbass.errors import CheckpointError, CwbassError, DataError, Interrupted, ParamsError, ServiceError
from cwbass.params import dump_params, load_params, parse_yaml
from cwbass.steps.launch import COMMAND, Cluster, TrainTask, launch, planned_job
from cwbass.steps.train import TrainParams
from cwbass.telemetry.session import TelemetrySettings
from cwbass.train_jobs import TrainJobs

client = pytest.importorskip("kubernetes.client", reason="kubernetes comes with the extra: pip install 'cwbass[pipeline]'")

TOP = Path(__file__).parents[2]
REPORT = {
    "stage": "train",
    "steps": 16,
    "split_hash": "abc",
    "checkpoints": {"last": "/w/last.pt"},
    "selection_miou": {"train": 0.5},
    "incidents": 0,
}


def train_params(**train: Any) -> TrainParams:
    return sections(smoke_params(**train), TrainParams)


@pytest.fixture(autouse=True)
def no_pod(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where the tests run in one."""
    monkeypatch.setattr("cwbass.train_jobs._POD_NAMESPACE", tmp_path / "namespace")


@pytest.fixture
def work(tmp_path: Path) -> Path:
    """A work volume with data, and a manifest and a warm-up that lie elsewhere, as artifacts do."""
    (tmp_path / "work" / "data").mkdir(parents=True)
    (tmp_path / "manifest.json").write_text("{}")
    (tmp_path / "warmup.pt").write_bytes(b"weights")
    return tmp_path / "work"


def start(server: FakeKubernetes | str, work: Path, params: TrainParams | None = None, **places: Any) -> Any:
    host = server if isinstance(server, str) else server.url
    configuration = client.Configuration(host=host)
    configuration.retries = False
    cluster = Cluster("registry/cwbass:1", work=work, poll=0.01, **places.pop("cluster", {}))
    files = {"manifest": work.parent / "manifest.json", "warmup": work.parent / "warmup.pt"}
    task = TrainTask(
        params=params or train_params(nodes=2), **files, **{"data_root": work / "data", "out_dir": work / "train", **places}
    )
    return launch(task, cluster=cluster, api=client.ApiClient(configuration))


def write_report(job: dict[str, Any]) -> None:
    (argument,) = [each for each in job["spec"]["trainer"]["args"] if each.startswith("--report=")]
    Path(argument.removeprefix("--report=")).write_text(json.dumps(REPORT))


def test_a_job_is_created_followed_and_its_report_read(work: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    params = changed(train_params(nodes=2, processes=1), "data", root="s3://datasets/streets")
    with FakeKubernetes({}, ended("Suspended"), active(2), ended("Complete"), created=write_report) as server:
        report = start(server, work, params, cluster={"timeout": 3600})
    assert report.to_dict() == REPORT
    ((name, job),) = server.jobs.items()
    trainer = job["spec"]["trainer"]
    assert (trainer["numNodes"], trainer["numProcPerNode"], trainer["image"]) == (2, 1, "registry/cwbass:1")
    assert job["spec"]["activeDeadlineSeconds"] == 3600
    files = dict(argument.removeprefix("--").split("=", 1) for argument in trainer["args"])
    assert files.pop("set") == 'data.root="s3://datasets/streets"'  # of what the folder is a copy
    assert load_params(parse_yaml(Path(files["params"]).read_text(), "params"), TrainParams) == params
    assert Path(files["warmup"]).read_bytes() == b"weights"
    assert all(Path(path).is_relative_to(work) for path in files.values())
    assert f"kubectl logs -n cwbass -l jobset.sigs.k8s.io/jobset-name={name}" in caplog.text
    states = [record.message for record in caplog.records if record.message.startswith(f"TrainJob {name}:")]
    assert states == [f"TrainJob {name}: {state}" for state in ("waiting for its pods", "suspended", "2 active, 2 ready")]
    paths = [request.replace(name, "NAME") for request in server.requests]
    jobs = "/apis/trainer.kubeflow.org/v1alpha1/namespaces/cwbass/trainjobs"
    assert paths == [f"GET {jobs}/NAME", f"POST {jobs}", *[f"GET {jobs}/NAME"] * 4]  # and no DELETE: its logs stay


def test_a_job_says_whose_run_it_is_as_the_step_that_starts_it_does(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without it, its outcome would be pushed as that of the pipeline `default`."""
    with FakeKubernetes(ended("Complete"), created=write_report) as server:
        start(server, work)
        (plain,) = server.jobs.values()
        monkeypatch.setenv("CWBASS_PIPELINE", "streets")
        start(server, work, run_id="run-7")
    (job,) = server.jobs.values()  # of the same name: it computes the same
    assert "env" not in plain["spec"]["trainer"]
    told = {"CWBASS_PIPELINE": "streets", "CWBASS_RUN_ID": "run-7"}
    assert job["spec"]["trainer"]["env"] == [{"name": name, "value": value} for name, value in told.items()]
    settings = TelemetrySettings.from_environment(told)
    assert (settings.pipeline, settings.run_id) == ("streets", "run-7")


@pytest.mark.parametrize(("device", "gpus"), [("auto", {"nvidia.com/gpu": "2"}), ("cuda", {"nvidia.com/gpu": "2"}), ("cpu", {})])
def test_the_pods_of_a_job_hold_a_gpu_for_each_process_and_none_on_the_cpu(work: Path, device: str, gpus: dict[str, str]) -> None:
    with FakeKubernetes(ended("Complete"), created=write_report) as server:
        start(server, work, train_params(nodes=2, processes=2, batch_labeled=4, batch_unlabeled=4, device=device))
    (job,) = server.jobs.values()
    resources = job["spec"]["trainer"]["resourcesPerNode"]
    assert resources == {"requests": {"cpu": "4", "memory": "16Gi", **gpus}, "limits": {"memory": "16Gi", **gpus}}


def test_a_job_goes_to_the_namespace_of_the_pod_that_starts_it(work: Path, tmp_path: Path) -> None:
    """A profile of Kubeflow has a name of its own, and KFP without users runs pods in `kubeflow`."""
    (tmp_path / "namespace").write_text("team-a\n")
    with FakeKubernetes(ended("Complete"), created=write_report) as server:
        start(server, work)
        start(server, work, train_params(nodes=2, max_nonfinite=3), cluster={"namespace": "team-b"})
    assert [job["metadata"]["namespace"] for job in server.jobs.values()] == ["team-a", "team-b"]
    assert "/namespaces/team-a/trainjobs" in server.requests[0]


def test_a_dry_run_prints_the_job_that_a_launch_starts_and_writes_nothing(work: Path) -> None:
    params = changed(train_params(nodes=2, processes=1), "data", root="work/data")
    (work.parent / "params.yaml").write_text(dump_params(params))
    words = ["--image", "registry/cwbass:1", "--params", "params.yaml", "--data", "work/data", "--manifest", "manifest.json"]
    words += ["--warmup", "warmup.pt", "--out", "work/train", "--work", "work", "--namespace", "cwbass", "--dry-run"]
    before = sorted(work.parent.rglob("*"))
    done = subprocess.run(
        [sys.executable, "-m", "cwbass", "launch", *words], cwd=work.parent, capture_output=True, text=True, check=True
    )
    assert sorted(work.parent.rglob("*")) == before
    with FakeKubernetes(ended("Complete"), created=write_report) as server:
        start(server, work, params)
    assert list(server.jobs.values()) == [json.loads(done.stdout)]


def test_the_arguments_are_those_of_the_command_line(work: Path) -> None:
    import typer

    from cwbass.cli import app

    with FakeKubernetes(ended("Complete"), created=write_report) as server:
        start(server, work)
    (job,) = server.jobs.values()
    trainer = job["spec"]["trainer"]
    assert trainer["command"] == list(COMMAND)
    assert COMMAND[-2:] == ("cwbass", "train")
    command = typer.main.get_command(app).commands["train"]  # type: ignore[attr-defined]
    given = command.make_context("train", list(trainer["args"])).params
    assert given["out"] == work / "train"
    assert given["report_file"] == work / "train" / "launch" / "report.json"


def test_the_first_pod_to_fail_says_why(work: Path) -> None:
    pods = [
        failed_pod("node-0", 1, "2026-01-01T00:00:01Z"),  # lost the other one
        failed_pod("node-1", 4, "2026-01-01T00:00:02Z"),
    ]
    log = "08:00:00 INFO split\nerror (process 1 of 2): a.png: no such file\nerror: training ended with exit code 4 (process 1)\n"
    failure = ended("Failed", "FailedJobs", "jobset failed due to one or more job failures")
    with (
        FakeKubernetes(active(2), failure, pods=pods, logs={"node-1": log}) as server,
        pytest.raises(DataError) as caught,
    ):
        start(server, work)
    (name,) = server.jobs
    assert str(caught.value) == (f"TrainJob cwbass/{name} failed with exit code 4: error (process 1 of 2): a.png: no such file")


@pytest.mark.parametrize(("code", "kind"), [(3, ParamsError), (6, ServiceError), (75, Interrupted), (137, CwbassError)])
def test_the_exit_code_of_the_job_becomes_ours(work: Path, code: int, kind: type[CwbassError]) -> None:
    pods = [failed_pod("node-0", code, "2026-01-01T00:00:01Z")]
    with (
        FakeKubernetes(ended("Failed", "FailedJobs", "gone"), pods=pods, logs={"node-0": ""}) as server,
        pytest.raises(CwbassError, match=rf"failed with exit code {code}: FailedJobs: gone") as caught,
    ):
        start(server, work)
    assert type(caught.value) is kind


def test_a_job_past_its_deadline_says_so_without_a_pod(work: Path) -> None:
    failure = ended("Failed", "DeadlineExceeded", "TrainJob was active longer than specified deadline")
    with FakeKubernetes(failure) as server, pytest.raises(CwbassError, match="DeadlineExceeded: TrainJob was active longer"):
        start(server, work, cluster={"timeout": 1})


@pytest.mark.parametrize(
    ("refuse", "message"),
    [
        ({"POST": 403}, r"does not let us create a TrainJob in namespace cwbass \(403: POST is not allowed\).*k8s/base/access"),
        ({"GET": 401}, r"does not let us read a TrainJob"),
        ({"POST": 404}, r"no trainjobs\.trainer\.kubeflow\.org, or no namespace cwbass.*Install Kubeflow Trainer 2\.2"),
        ({"POST": 422}, r"refuses to create a TrainJob \(422"),
    ],
)
def test_a_cluster_that_refuses_is_a_wrong_environment(work: Path, refuse: dict[str, int], message: str) -> None:
    with FakeKubernetes({}, refuse=refuse) as server, pytest.raises(ParamsError, match=message):
        start(server, work)


def test_a_cluster_that_hiccups_is_asked_again_and_one_that_is_gone_is_given_up(work: Path) -> None:
    with FakeKubernetes(active(2), 503, None, 500, ended("Complete"), created=write_report) as server:
        assert start(server, work).steps == 16
    with FakeKubernetes(active(2), 503) as server, pytest.raises(ServiceError, match=r"cannot read a TrainJob \(503: etcd"):
        start(server, work)
    with pytest.raises(ServiceError, match="does not answer"):
        start(server.url, work)  # nobody listens any more


def test_an_active_job_is_followed_and_one_that_has_ended_is_started_again(work: Path) -> None:
    with FakeKubernetes(ended("Complete"), created=write_report) as server:
        start(server, work)
        (name,) = server.jobs
        server.requests.clear()
        server.script = [active(2), ended("Complete")]
        start(server, work)
        assert not any(request.startswith(("POST", "DELETE")) for request in server.requests)
        start(server, work)  # it has ended by now
        assert [request.split()[0] for request in server.requests if not request.startswith("GET")] == ["DELETE", "POST"]
        start(server, work, train_params(nodes=2, max_nonfinite=3))
        assert len(server.jobs) == 2  # other parameters are another job
    assert name in server.jobs


def test_a_job_that_was_deleted_is_an_error_not_a_wait(work: Path) -> None:
    with FakeKubernetes(active(2)) as server:
        server.created = lambda job: threading.Timer(0.1, server.jobs.clear).start()
        with pytest.raises(CwbassError, match="was deleted while it ran"):
            start(server, work)


def test_a_complete_job_without_a_report_is_no_success(work: Path) -> None:
    with FakeKubernetes(ended("Complete")) as server, pytest.raises(CheckpointError, match=r"report\.json holds no report"):
        start(server, work)


def test_what_pods_cannot_see_or_divide_is_refused_before_anything_is_sent(work: Path, tmp_path: Path) -> None:
    for places in ({"data_root": tmp_path / "data"}, {"out_dir": tmp_path / "train"}):
        with pytest.raises(ParamsError, match=r"must lie on the work volume"):
            start("http://127.0.0.1:9", work, **places)
    with pytest.raises(ParamsError, match=r"train\.batch_labeled is 2.*among 6 processes"):
        start("http://127.0.0.1:9", work, train_params(nodes=3, processes=2))


def test_sigterm_deletes_the_job(work: Path) -> None:
    (work.parent / "params.yaml").write_text(yaml.safe_dump(train_params(nodes=2).model_dump(mode="json")))
    with FakeKubernetes(active(2)) as server:
        kubeconfig = {
            "apiVersion": "v1",
            "kind": "Config",
            "current-context": "c",
            "clusters": [{"name": "c", "cluster": {"server": server.url}}],
            "users": [{"name": "u", "user": {"token": "t"}}],
            "contexts": [{"name": "c", "context": {"cluster": "c", "user": "u"}}],
        }
        (work.parent / "kubeconfig").write_text(yaml.safe_dump(kubeconfig))
        command = [sys.executable, "-m", "cwbass", "launch", "--image=i", f"--work={work}", f"--data={work / 'data'}"]
        files = [f"--{name}={work.parent / file}" for name, file in (("params", "params.yaml"), ("manifest", "manifest.json"))]
        process = subprocess.Popen(
            [*command, *files, f"--warmup={work.parent / 'warmup.pt'}", f"--out={work / 'train'}"],
            env={**os.environ, "KUBECONFIG": str(work.parent / "kubeconfig")},
            stderr=subprocess.PIPE,
            text=True,
        )
        assert process.stderr is not None
        for line in process.stderr:
            if "2 active" in line:
                break
        assert len(server.jobs) == 1
        process.send_signal(signal.SIGTERM)
        rest = process.communicate(timeout=60)[1]
        assert process.returncode == 143
        assert "stopped: deleting TrainJob" in rest
        assert server.jobs == {}


def test_the_example_is_what_is_launched(tmp_path: Path) -> None:
    example = yaml.safe_load((TOP / "k8s/examples/train-job.yaml").read_text())
    check(example)
    for name in ("manifest.json", "warmup.pt"):
        (tmp_path / name).touch()
    cluster = Cluster(example["spec"]["trainer"]["image"], work=tmp_path)
    task = TrainTask(
        params=train_params(nodes=2, processes=4, batch_labeled=8, batch_unlabeled=8),
        manifest=tmp_path / "manifest.json",
        warmup=tmp_path / "warmup.pt",
        data_root=tmp_path / "data",
        out_dir=tmp_path / "out",
    )
    job = planned_job(task, cluster=cluster)
    assert not (tmp_path / "out").exists()
    names = [[argument.partition("=")[0] for argument in each["spec"]["trainer"]["args"]] for each in (example, job)]
    assert names[0] == names[1]
    for each in (example, job):
        each["spec"]["trainer"].pop("args")
        each["metadata"].pop("name")
    assert job == example


def test_the_runtime_mounts_what_the_launcher_relies_on() -> None:
    runtime = yaml.safe_load((TOP / "k8s/base/training/runtime.yaml").read_text())
    (replicated,) = runtime["spec"]["template"]["spec"]["replicatedJobs"]
    job = replicated["template"]["spec"]
    pod = job["template"]["spec"]
    (container,) = pod["containers"]
    assert runtime["metadata"]["name"] == Cluster("i").runtime
    mounts = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}
    assert mounts == {"work": str(Cluster("i").work), "shm": "/dev/shm", "tmp": "/tmp"}
    assert {volume["name"] for volume in pod["volumes"]} == set(mounts)
    # Trainer finds the container of a node by these two.
    assert replicated["template"]["metadata"]["labels"]["trainer.kubeflow.org/trainjob-ancestor-step"] == "trainer"
    assert replicated["name"] == container["name"] == "node"
    # Every error that a retry cannot mend ends the job, and no other.
    (rule,) = job["podFailurePolicy"]["rules"]
    assert rule["onExitCodes"]["values"] == [2, 3, 4, 5]
    assert pod["restartPolicy"] == "Never"  # a failure policy of pods needs it
    # For a JobSet that its time to live has deleted Trainer makes another, and a job that failed trains again.
    assert "ttlSecondsAfterFinished" not in runtime["spec"]["template"]["spec"]


def test_the_server_refuses_what_the_api_would() -> None:
    example = yaml.safe_load((TOP / "k8s/examples/train-job.yaml").read_text())
    example["spec"]["trainer"]["numNode"] = 2
    with pytest.raises(jsonschema.ValidationError, match="numNode"):
        check(example)


@pytest.mark.parametrize("verb", ["create", "delete"])
def test_an_api_that_accepts_a_request_and_never_answers_is_given_up(verb: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cwbass.train_jobs.ANSWER_SECONDS", 1)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        api = client.ApiClient(client.Configuration(host=f"http://127.0.0.1:{silent.getsockname()[1]}"))
        jobs = TrainJobs(api, "cwbass")
        ask = {
            "create": lambda: jobs._ask("create", jobs.jobs.create_namespaced_custom_object, *jobs.place, {}),
            "delete": lambda: jobs.delete("a"),
        }
        with pytest.raises(ServiceError, match=r"the Kubernetes API does not answer: cannot (create|delete a TrainJob) "):
            ask[verb]()
