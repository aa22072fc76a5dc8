"""The manifests in k8s/: valid, within the restricted profile, closed by default, and of one mind with image and pipeline."""

from __future__ import annotations

import copy
import inspect
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import botocore.session
import pytest
import yaml
from botocore.validate import ParamValidator
from k8s_checks import (
    K8S,
    TOP,
    Manifest,
    custom_resources,
    network_allows,
    pod_specs,
    pod_templates,
    render,
    restricted_violations,
    validate,
)

import cwbass

FOLDERS = ["base", "overlays/dev", "overlays/prod"]
ALL = [*FOLDERS, "overlays/profile", "overlays/standalone"]
VERSIONS = ["1.31", "1.37"]  # the oldest that Kubeflow Trainer 2 runs on, and the newest schemas here
SOURCES = sorted(path for path in K8S.rglob("*.yaml") if path.name != "kustomization.yaml")


def documents(path: Path) -> list[Manifest]:
    return list(yaml.safe_load_all(path.read_text()))


def one(folder: str, kind: str, name: str) -> Manifest:
    (found,) = [item for item in render(folder) if (item["kind"], item["metadata"]["name"]) == (kind, name)]
    return found


@pytest.fixture
def k8s(tmp_path: Path) -> Path:
    """A copy of the manifests, to change."""
    return Path(shutil.copytree(K8S, tmp_path / "k8s"))


# Schemas


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("folder", ALL)
def test_what_would_be_applied_is_valid(folder: str, version: str) -> None:
    documents = render(folder)
    assert documents
    for document in documents:
        validate(document, version)  # raises, as the tests below show


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(K8S)))
def test_each_file_is_valid_by_itself(path: Path) -> None:
    found = documents(path)
    assert found
    for document in found:
        validate(document, VERSIONS[-1])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: d["spec"].update(acessModes=[]), r"'acessModes' was unexpected"),
        (lambda d: d["spec"].update(accessModes="ReadWriteOnce"), r"\$\.spec\.accessModes"),
        (lambda d: d.update(kind="PersistentVolumeClaims"), "no such kind"),
        (lambda d: d.update(apiVersion="storage.example.com/v1"), "no such kind"),
    ],
)
def test_a_wrong_field_type_or_kind_is_found(change: Callable[[Manifest], Any], message: str) -> None:
    document = copy.deepcopy(one("base", "PersistentVolumeClaim", "cwbass-work"))
    change(document)
    with pytest.raises(ValueError, match=message):
        validate(document, VERSIONS[-1])


RUNTIME: Manifest = {
    "apiVersion": "trainer.kubeflow.org/v1alpha1",
    "kind": "TrainingRuntime",
    "metadata": {"name": "example"},
    "spec": {
        "template": {
            "spec": {
                "replicatedJobs": [
                    {
                        "name": "node",
                        "template": {
                            "spec": {"template": {"spec": {"containers": [{"name": "node"}], "restartPolicy": "Never"}}}
                        },
                    }
                ]
            }
        }
    },
}


def test_the_pods_inside_a_custom_resource_are_checked_too() -> None:
    validate(RUNTIME, VERSIONS[-1])
    wrong = copy.deepcopy(RUNTIME)
    ((_, pod),) = pod_specs(wrong)
    pod["containers"][0]["comand"] = ["cwbass"]
    with pytest.raises(ValueError, match="'comand' was unexpected"):
        validate(wrong, VERSIONS[-1])
    wrong = copy.deepcopy(RUNTIME)
    wrong["spec"]["mlPolicy"] = {"nodes": 2}
    with pytest.raises(ValueError, match="'nodes' was unexpected"):
        validate(wrong, VERSIONS[-1])


def test_every_file_is_applied_by_an_overlay_or_an_example() -> None:
    applied = {(item["kind"], item["metadata"]["name"]) for folder in ALL for item in render(folder)}
    for path in SOURCES:
        named = {(item["kind"], item["metadata"]["name"]) for item in documents(path)}
        assert named & applied == (set() if "examples" in path.parts else named), path


# Pods


@pytest.mark.parametrize("folder", ALL)
def test_every_pod_passes_the_restricted_profile(folder: str) -> None:
    pods = [(item["metadata"]["name"], spec) for item in render(folder) for _, spec in pod_specs(item)]
    assert pods
    assert {name: restricted_violations(spec) for name, spec in pods} == {name: [] for name, _ in pods}


@pytest.mark.parametrize("path", sorted((K8S / "examples").glob("*.yaml")), ids=lambda path: path.stem)
def test_every_pod_of_an_example_passes_it_too(path: Path) -> None:
    assert [
        violation for item in documents(path) for _, spec in pod_specs(item) for violation in restricted_violations(spec)
    ] == []


def test_parameters_and_weights_reach_the_volume_before_a_verb_reads_them() -> None:
    """The volume is empty: without params.yaml `synthesize` ends with an error, and without its weights `check` does."""
    steps = re.findall(r"^    kubectl -n cwbass (?:exec|cp) (.+)$", (TOP / "docs/deploy.md").read_text(), flags=re.MULTILINE)
    assert steps[0] == "params.yaml cwbass-work:/workspace/"
    assert steps[1].startswith("cwbass-work -- cwbass synthesize")
    (copied,) = [
        number for number, step in enumerate(steps) if step.startswith("artifacts/weights cwbass-work:/workspace/artifacts/")
    ]
    assert copied < steps.index("cwbass-work -- cwbass check")
    assert yaml.safe_load((TOP / "params.yaml").read_text())["model"]["weights"].startswith("artifacts/weights/")


def test_the_shell_sees_the_volume_as_the_pods_of_a_run_do() -> None:
    (shell,) = documents(K8S / "examples/work-shell.yaml")
    assert "namespace" not in shell["metadata"]  # `kubectl -n` says it: with `standalone` it is another one
    (container,) = shell["spec"]["containers"]
    (node,) = pod_templates(documents(K8S / "base/training/runtime.yaml"))
    assert container["volumeMounts"] == node["spec"]["containers"][0]["volumeMounts"]
    for key in ("securityContext", "serviceAccountName"):
        assert shell["spec"][key] == node["spec"][key]
    assert shell["spec"]["volumes"][0] == node["spec"]["volumes"][0]
    assert container["image"] == pod_of_the_job()["containers"][0]["image"]


@pytest.mark.parametrize("folder", ALL)
def test_every_container_has_a_read_only_root_and_says_what_it_needs(folder: str) -> None:
    for item in render(folder):
        for _, spec in pod_specs(item):
            for container in spec["containers"]:
                where = f"{item['metadata']['name']}/{container['name']}"
                assert container["securityContext"]["readOnlyRootFilesystem"] is True, where
                assert {"cpu", "memory"} <= container["resources"]["requests"].keys(), where


def test_no_pod_gets_a_proxy_of_istio_which_profiles_inject() -> None:
    """With one a job does not end, and processes of a training do not meet."""
    templates = [pod for item in render("overlays/profile") for pod in pod_templates(item)]
    assert len(templates) == 3
    for path in sorted((K8S / "examples").glob("*.yaml")):
        templates += [pod for item in documents(path) for pod in pod_templates(item)]
    assert [pod["metadata"]["labels"].get("sidecar.istio.io/inject") for pod in templates] == ["false"] * len(templates)


def pod_of_the_job() -> Manifest:
    ((_, spec),) = pod_specs(copy.deepcopy(one("base", "Job", "prepare-work-volume")))
    return spec


@pytest.mark.parametrize(
    ("change", "violation"),
    [
        (lambda pod, box: pod.update(hostNetwork=True), "hostNetwork is true"),
        (lambda pod, box: pod.update(hostPID=True), "hostPID is true"),
        (lambda pod, box: pod["volumes"].append({"name": "x", "hostPath": {"path": "/"}}), "volume x is a hostPath"),
        (lambda pod, box: pod["securityContext"].pop("runAsNonRoot"), "prepare: runAsNonRoot is not true"),
        (lambda pod, box: pod["securityContext"].update(runAsUser=0), "pod: runAsUser is 0"),
        (lambda pod, box: pod["securityContext"].pop("seccompProfile"), "prepare: no seccompProfile"),
        (lambda pod, box: box.update(seccompProfile={"type": "Unconfined"}), "prepare: seccompProfile is Unconfined"),
        (
            lambda pod, box: pod["securityContext"].update(sysctls=[{"name": "kernel.msgmax", "value": "1"}]),
            "sysctl kernel.msgmax",
        ),
        (lambda pod, box: box.update(runAsNonRoot=False), "prepare: runAsNonRoot is false"),
        (lambda pod, box: box.pop("allowPrivilegeEscalation"), "prepare: allowPrivilegeEscalation is not false"),
        (lambda pod, box: box.update(privileged=True), "prepare: privileged"),
        (lambda pod, box: box["capabilities"].update(drop=["NET_RAW"]), "prepare: does not drop ALL"),
        (lambda pod, box: box["capabilities"].update(add=["SYS_PTRACE"]), "prepare: adds SYS_PTRACE"),
        (lambda pod, box: box.update(procMount="Unmasked"), "prepare: procMount"),
        (lambda pod, box: pod["containers"][0].update(ports=[{"containerPort": 1, "hostPort": 1}]), "prepare: hostPort 1"),
        (lambda pod, box: pod.update(initContainers=[{"name": "init"}]), "init: does not drop ALL"),
    ],
)
def test_each_way_out_of_the_profile_is_found(change: Callable[[Manifest, Manifest], Any], violation: str) -> None:
    pod = pod_of_the_job()
    assert restricted_violations(pod) == []
    change(pod, pod["containers"][0]["securityContext"])
    assert violation in restricted_violations(pod)


# Network


@pytest.mark.parametrize("folder", FOLDERS)
@pytest.mark.parametrize(
    ("direction", "port", "peer", "allowed"),
    [
        ("egress", 53, {"protocol": "UDP", "namespace": "kube-system", "labels": {"k8s-app": "kube-dns"}}, True),
        ("egress", 53, {"protocol": "UDP", "namespace": "kube-system"}, False),
        ("egress", 53, {"protocol": "UDP", "address": "8.8.8.8"}, False),
        ("egress", 443, {"address": "52.216.0.1"}, True),  # S3
        ("egress", 443, {"address": "2600:1f00::1"}, True),
        ("egress", 6443, {"address": "10.0.0.1"}, True),  # the Kubernetes API
        ("egress", 80, {"address": "52.216.0.1"}, False),
        ("egress", 80, {"address": "169.254.169.254"}, False),
        ("egress", 443, {"address": "169.254.169.254"}, False),  # the node's own credentials
        ("egress", 8887, {"namespace": "kubeflow"}, True),
        ("egress", 9000, {"namespace": "kubeflow"}, True),
        ("egress", 22, {"namespace": "kubeflow"}, False),
        ("egress", 29500, {"namespace": "cwbass"}, True),  # torchrun's rendezvous
        ("egress", 29500, {"namespace": "other"}, False),
        ("ingress", 29500, {"namespace": "cwbass"}, True),
        ("ingress", 29500, {"namespace": "other"}, False),
        ("ingress", 9095, {"namespace": "monitoring"}, True),
        ("ingress", 9091, {"namespace": "monitoring"}, True),  # the Pushgateway
        ("ingress", 9095, {"namespace": "other"}, False),
        ("ingress", 22, {"namespace": "monitoring"}, False),
        ("ingress", 9095, {"address": "52.216.0.1"}, False),
    ],
)
def test_the_network_is_closed_but_for_what_a_run_needs(
    folder: str, direction: str, port: int, peer: dict[str, Any], allowed: bool
) -> None:
    assert network_allows(render(folder), direction, port, **peer) is allowed


@pytest.mark.parametrize("agent", ["169.254.170.23", "fd00:ec2::23"])
def test_pod_identity_has_a_way_to_its_agent_and_to_nothing_else(agent: str) -> None:
    closed, more = render("overlays/prod"), documents(K8S / "examples/eks-pod-identity.yaml")
    asked = [(80, agent), (443, agent), (80, "169.254.169.254"), (80, "fd00:ec2::254"), (80, "52.216.0.1")]
    assert [network_allows(closed, "egress", port, address=address) for port, address in asked] == [False] * 5
    opened = (*closed, *more)
    assert [network_allows(opened, "egress", port, address=address) for port, address in asked] == [True] + [False] * 4


# Roles


def can(verb: str, resource: str, *, group: str = "", name: str = "any") -> bool:
    """Whether cwbass-runner may, by the roles bound to it in the base."""
    roles = {item["metadata"]["name"]: item["rules"] for item in render("base") if item["kind"] == "Role"}
    bound = [item for item in render("base") if item["kind"] == "RoleBinding"]
    runner = {"kind": "ServiceAccount", "name": "cwbass-runner"}
    mine = [item["roleRef"]["name"] for item in bound if runner.items() <= item["subjects"][0].items()]
    return any(
        verb in rule["verbs"]
        and resource in rule["resources"]
        and group in rule["apiGroups"]
        and name in rule.get("resourceNames", [name])
        for role in mine
        for rule in roles[role]
    )


def test_the_runner_may_start_and_stop_train_jobs_and_little_else() -> None:
    verbs = ("create", "get", "list", "watch", "update", "patch", "delete")
    allowed = [verb for verb in verbs if can(verb, "trainjobs", group="trainer.kubeflow.org")]
    assert allowed == ["create", "get", "delete"]  # what cwbass/train_jobs.py asks for
    assert can("create", "workflowtaskresults", group="argoproj.io")
    assert can("get", "secrets", name="mlpipeline-minio-artifact")
    assert not can("get", "secrets", name="cwbass-s3")  # pods get it from the kubelet
    assert not can("list", "secrets")
    assert not any(can(verb, "pods") for verb in ("create", "delete", "patch", "update"))
    assert not can("create", "pods/exec")
    assert not can("create", "rolebindings", group="rbac.authorization.k8s.io")


@pytest.mark.parametrize("folder", ALL)
def test_no_role_of_ours_is_cluster_wide_or_has_a_wildcard(folder: str) -> None:
    kinds = {item["kind"] for item in render(folder)}
    assert not kinds & {"ClusterRole", "ClusterRoleBinding"}
    assert "*" not in json.dumps([item["rules"] for item in render(folder) if item["kind"] == "Role"])


# Overlays and limits


def test_overlays_change_what_they_are_for() -> None:
    volumes = [one(folder, "PersistentVolumeClaim", "cwbass-work")["spec"] for folder in FOLDERS]
    assert [spec["accessModes"] for spec in volumes] == [["ReadWriteMany"], ["ReadWriteOnce"], ["ReadWriteMany"]]
    alone = one("overlays/standalone", "PersistentVolumeClaim", "cwbass-work")["spec"]
    assert (alone["accessModes"], alone["resources"]["requests"]["storage"]) == (["ReadWriteOnce"], "10Gi")
    quotas = [one(folder, "ResourceQuota", "cwbass-gpus")["spec"]["hard"]["requests.nvidia.com/gpu"] for folder in FOLDERS]
    assert quotas == ["4", "1", "16"]
    levels = [
        one(folder, "Namespace", "cwbass")["metadata"]["labels"]["pod-security.kubernetes.io/enforce"] for folder in FOLDERS
    ]
    assert levels == ["baseline", "baseline", "restricted"]
    account = one("overlays/prod", "ServiceAccount", "cwbass-runner")
    assert re.fullmatch(
        r"arn:aws:iam::\d{12}:role/cwbass-runner", account["metadata"]["annotations"]["eks.amazonaws.com/role-arn"]
    )
    assert "annotations" not in one("overlays/dev", "ServiceAccount", "cwbass-runner")["metadata"]


def test_a_profile_gets_all_of_prod_but_the_namespace() -> None:
    assert render("overlays/profile") == tuple(item for item in render("overlays/prod") if item["kind"] != "Namespace")


def test_a_namespace_of_another_name_is_one_line_of_an_overlay(k8s: Path) -> None:
    file = k8s / "overlays/profile/kustomization.yaml"
    file.write_text(file.read_text().replace("namespace: cwbass ", "namespace: team "))
    others = json.loads(json.dumps(render("overlays/profile")).replace('"namespace": "cwbass"', '"namespace": "team"'))
    assert list(render(str(file.parent))) == others


@pytest.mark.parametrize("folder", ["base", "overlays/dev", "overlays/standalone"])
def test_what_needs_an_operator_is_left_out_where_there_may_be_none(folder: str) -> None:
    """One kind that the cluster does not know ends `kubectl apply` with an error."""
    assert not {f"{item['apiVersion']}/{item['kind']}" for item in render(folder)} & custom_resources().keys()


@pytest.mark.parametrize(
    ("folder", "more"),
    [
        ("overlays/prod", set()),
        (
            "overlays/dev",
            {"TrainingRuntime", "PriorityClass", "PodMonitor", "PrometheusRule", "Deployment", "Service", "ConfigMap"},
        ),
        ("overlays/standalone", {"TrainingRuntime", "PriorityClass"}),
    ],
)
def test_what_an_overlay_offers_in_comments_is_valid_too(folder: str, more: set[str], k8s: Path) -> None:
    file = k8s / folder / "kustomization.yaml"
    file.write_text(re.sub(r"^( *)#(?=-|  )", r"\1", file.read_text(), flags=re.MULTILINE))
    for item in (found := render(str(file.parent))):
        validate(item, VERSIONS[-1])
    assert {item["kind"] for item in found} - {item["kind"] for item in render(folder)} == more
    (account,) = [item for item in found if item["kind"] == "ServiceAccount"]
    assert account["imagePullSecrets"] == [{"name": "registry"}]
    pods = [pod["spec"] for item in found for pod in pod_templates(item) if "ghcr.io/cwbass" in json.dumps(pod)]
    assert {pod["serviceAccountName"] for pod in pods} == {account["metadata"]["name"]}


def test_a_label_of_an_overlay_reaches_what_prometheus_selects_by_label(k8s: Path) -> None:
    file = k8s / "overlays/prod/kustomization.yaml"
    file.write_text(file.read_text().replace("environment: prod", "environment: prod\n      release: stack"))
    found = [item for item in render(str(file.parent)) if item["kind"] in ("PodMonitor", "PrometheusRule")]
    assert [item["metadata"]["labels"]["release"] for item in found] == ["stack"] * 3
    groups = {group["name"] for item in found for group in item["spec"].get("groups", ())}
    assert groups == {"cwbass-training", "cwbass-outcome"}  # docs/deploy.md names the first


def test_what_lets_cilium_reach_the_api_server_has_the_ports_of_the_policy_that_it_mends() -> None:
    (mended,) = documents(K8S / "examples/cilium-apiserver.yaml")
    ports = [port for rule in mended["spec"]["egress"] for each in rule["toPorts"] for port in each["ports"]]
    (https,) = one("base", "NetworkPolicy", "egress-https")["spec"]["egress"]
    assert [{**port, "port": int(port["port"])} for port in ports] == https["ports"]


def test_the_limit_range_sets_requests_and_no_limits() -> None:
    # A default limit refuses pods that request more and name no limit, and `max` becomes a default limit.
    (limits,) = one("base", "LimitRange", "cwbass-defaults")["spec"]["limits"]
    assert limits.keys() == {"type", "defaultRequest"}


def test_training_never_evicts_others() -> None:
    classes = {(item["kind"], item["metadata"]["name"]) for item in render("base/training")}
    for pod in (pod for item in render("base/training") for pod in pod_templates(item)):
        assert ("PriorityClass", pod["spec"]["priorityClassName"]) in classes  # without it the API refuses the pod
    priority = one("overlays/prod", "PriorityClass", "cwbass-training")
    assert (priority["preemptionPolicy"], priority["globalDefault"]) == ("Never", False)


# Examples


def test_the_secret_is_a_template_that_no_overlay_applies() -> None:
    (secret,) = documents(K8S / "examples/s3-secret.yaml")
    assert secret["stringData"] == {"AWS_ACCESS_KEY_ID": "", "AWS_SECRET_ACCESS_KEY": "", "AWS_ENDPOINT_URL_S3": ""}
    assert not any(item["kind"] == "Secret" for folder in ALL for item in render(folder))


def test_the_bucket_lifecycle_is_what_s3_takes_and_expires_runs_alone() -> None:
    lifecycle = json.loads((K8S / "examples/bucket-lifecycle.json").read_text())
    operation = botocore.session.get_session().get_service_model("s3").operation_model("PutBucketLifecycleConfiguration")
    report = ParamValidator().validate({"Bucket": "models", "LifecycleConfiguration": lifecycle}, operation.input_shape)
    assert not report.has_errors(), report.generate_report()
    expiring = [rule["Filter"]["Prefix"] for rule in lifecycle["Rules"] if "Expiration" in rule]
    assert expiring == ["PREFIX/runs/"]  # never models/
    assert all(rule["Filter"]["Prefix"].startswith("PREFIX/") for rule in lifecycle["Rules"])  # a bucket has other owners too


# Names that others rely on


@pytest.mark.parametrize("folder", ALL)
def test_everything_lies_in_one_namespace(folder: str) -> None:
    namespace = "kubeflow" if folder.endswith("standalone") else "cwbass"
    cluster_wide = {"Namespace", "PriorityClass"}
    assert {item["metadata"].get("namespace") for item in render(folder) if item["kind"] not in cluster_wide} == {namespace}
    bound = [subject for item in render(folder) if item["kind"] == "RoleBinding" for subject in item["subjects"]]
    assert {subject["namespace"] for subject in bound} == {namespace}


def test_what_is_added_to_the_namespace_of_kubeflow_concerns_no_other_pod() -> None:
    kinds = {item["kind"] for item in render("overlays/standalone")}
    assert not kinds & {"Namespace", "NetworkPolicy", "ResourceQuota", "LimitRange"}


def test_pods_run_as_the_user_and_in_the_folder_of_the_image() -> None:
    dockerfile = (TOP / "components/Dockerfile").read_text()
    assert set(re.findall(r"^USER (.+)$", dockerfile, flags=re.MULTILINE)) == {"10001:10001"}
    assert re.findall(r"^WORKDIR (.+)$", dockerfile, flags=re.MULTILINE) == ["/workspace"]
    pod = pod_of_the_job()
    assert [pod["securityContext"][key] for key in ("runAsUser", "runAsGroup", "fsGroup")] == [10001] * 3
    assert pod["containers"][0]["volumeMounts"] == [{"name": "work", "mountPath": "/workspace"}]
    assert pod["containers"][0]["image"] == f"ghcr.io/cwbass/cwbass:{cwbass.__version__}-gpu"


def test_the_pipeline_means_what_the_manifests_make() -> None:
    pods = pytest.importorskip("pipeline.pods", reason="needs cwbass[pipeline] and the folder pipeline/")
    submit = pytest.importorskip("pipeline.__main__").submit
    (secret,) = documents(K8S / "examples/s3-secret.yaml")
    names = (pods.WORK_VOLUME, pods.WORK_DIR, pods.S3_SECRET, pods.USER)
    assert names == ("cwbass-work", "/workspace", secret["metadata"]["name"], 10001)
    text = (K8S / "examples/s3-secret.yaml").read_text()
    assert re.findall(r"^ +(?:# )?([A-Z0-9_]+):", text, flags=re.MULTILINE) == list(pods.S3_KEYS)
    (node,) = one("overlays/prod", "TrainingRuntime", "cwbass-torch")["spec"]["template"]["spec"]["replicatedJobs"]
    (container,) = node["template"]["spec"]["template"]["spec"]["containers"]
    told = {item["name"]: item["value"] for item in container["env"]}
    assert told | {"CWBASS_PIPELINE": "any"} == pods.monitoring("any")  # the PodMonitor selects pods of both
    assert one("base", "ServiceAccount", inspect.signature(submit).parameters["service_account"].default)
