"""What a cluster would say of our manifests: schemas, the `restricted` pod-security profile, network policies."""

from __future__ import annotations

import ipaddress
import subprocess
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import yaml
from tools import tool

TOP = Path(__file__).parents[1]
K8S = TOP / "k8s"
Manifest = dict[str, Any]


@cache
def render(folder: str) -> tuple[Manifest, ...]:
    """What `kubectl apply -k k8s/<folder>` would send."""
    done = subprocess.run([tool("kubectl"), "kustomize", str(K8S / folder)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stderr == "", done.stderr  # kustomize only warns of deprecated fields
    return tuple(yaml.safe_load_all(done.stdout))


@cache
def custom_resources() -> Manifest:
    """Schemas of specs, by `apiVersion/kind`."""
    return yaml.safe_load((TOP / "tests/k8s/crds.yaml").read_text())


def validate(document: Manifest, version: str) -> None:
    """Check against the API's schema, unknown fields included; a kind without a schema is an error.

    Args:
        document: One manifest.
        version: Of Kubernetes, such as "1.31".

    Raises:
        ValueError: It is not valid; says where and why.
    """
    name = f"{document['apiVersion']}/{document['kind']} {document['metadata']['name']}"
    try:
        if schema := custom_resources().get(name.split()[0]):
            jsonschema.validate(document["spec"], schema)
            for job in document["spec"].get("template", {}).get("spec", {}).get("replicatedJobs", ()):
                named = {"name": job["name"], **job["template"].get("metadata", {})}
                validate({"apiVersion": "batch/v1", "kind": "Job", **job["template"], "metadata": named}, version)
        else:
            kubernetes_validate.validate(document, version, strict=True)
    except kubernetes_validate.SchemaNotFoundError as error:
        raise ValueError(f"{name}: there is no such kind in Kubernetes {version}, and none in tests/k8s/crds.yaml") from error
    except jsonschema.ValidationError as error:
        raise ValueError(f"{name}: {error.json_path}: {error.message}") from error


def pod_specs(value: Any, where: str = "") -> Iterator[tuple[str, Manifest]]:
    """Every pod's spec inside a manifest, whatever its kind, with its path."""
    if isinstance(value, dict):
        if "containers" in value:
            yield where, value
        for key, inner in value.items():
            yield from pod_specs(inner, f"{where}.{key}")
    elif isinstance(value, list):
        for index, inner in enumerate(value):
            yield from pod_specs(inner, f"{where}[{index}]")


def pod_templates(value: Any) -> Iterator[Manifest]:
    """Every pod inside a manifest, with its metadata."""
    if isinstance(value, dict):
        if "containers" in value.get("spec", {}):
            yield value
        for inner in value.values():
            yield from pod_templates(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from pod_templates(inner)


SAFE_VOLUMES = {"configMap", "csi", "downwardAPI", "emptyDir", "ephemeral", "persistentVolumeClaim", "projected", "secret"}
SAFE_SYSCTLS = {
    "kernel.shm_rmid_forced",
    "net.ipv4.ip_local_port_range",
    "net.ipv4.ip_unprivileged_port_start",
    "net.ipv4.tcp_syncookies",
    "net.ipv4.ping_group_range",
    "net.ipv4.ip_local_reserved_ports",
    "net.ipv4.tcp_keepalive_time",
    "net.ipv4.tcp_fin_timeout",
    "net.ipv4.tcp_keepalive_intvl",
    "net.ipv4.tcp_keepalive_probes",
    "net.ipv4.tcp_rmem",
    "net.ipv4.tcp_wmem",
}
SAFE_PROFILES = {"RuntimeDefault", "Localhost"}
SAFE_SELINUX = {None, "", "container_t", "container_init_t", "container_kvm_t", "container_engine_t"}


def restricted_violations(spec: Manifest) -> list[str]:
    """What of a pod breaks the `restricted` profile.

    Source:
        https://kubernetes.io/docs/concepts/security/pod-security-standards/, both levels, for Linux pods.
    """
    pod = spec.get("securityContext", {})
    found = [f"{key} is true" for key in ("hostNetwork", "hostPID", "hostIPC") if spec.get(key)]
    found += _context_violations("pod", pod)
    found += [f"sysctl {item['name']}" for item in pod.get("sysctls", ()) if item["name"] not in SAFE_SYSCTLS]
    for volume in spec.get("volumes", ()):
        found += [f"volume {volume['name']} is a {kind}" for kind in volume.keys() - {"name"} - SAFE_VOLUMES]
    for container in [item for key in ("initContainers", "containers", "ephemeralContainers") for item in spec.get(key, ())]:
        name, context = container["name"], container.get("securityContext", {})
        effective = pod | context
        found += _context_violations(name, context)
        if context.get("privileged"):
            found.append(f"{name}: privileged")
        if context.get("allowPrivilegeEscalation") is not False:
            found.append(f"{name}: allowPrivilegeEscalation is not false")
        if effective.get("runAsNonRoot") is not True:
            found.append(f"{name}: runAsNonRoot is not true")
        if effective.get("seccompProfile", {}).get("type") not in SAFE_PROFILES:
            found.append(f"{name}: no seccompProfile")
        capabilities = context.get("capabilities", {})
        if "ALL" not in capabilities.get("drop", ()):
            found.append(f"{name}: does not drop ALL")
        found += [f"{name}: adds {item}" for item in capabilities.get("add", ()) if item != "NET_BIND_SERVICE"]
        if context.get("procMount", "Default") != "Default":
            found.append(f"{name}: procMount")
        found += [f"{name}: hostPort {port['hostPort']}" for port in container.get("ports", ()) if port.get("hostPort")]
        probes = [container.get(key, {}) for key in ("livenessProbe", "readinessProbe", "startupProbe")]
        actions = [*probes, *container.get("lifecycle", {}).values()]
        found += [
            f"{name}: probes another host"
            for item in actions
            for kind in ("httpGet", "tcpSocket")
            if item.get(kind, {}).get("host")
        ]
    return found


def _context_violations(name: str, context: Manifest) -> Iterator[str]:
    if context.get("runAsUser") == 0:
        yield f"{name}: runAsUser is 0"
    if context.get("runAsNonRoot") is False:
        yield f"{name}: runAsNonRoot is false"
    for profile in ("seccompProfile", "appArmorProfile"):
        if profile in context and context[profile].get("type") not in SAFE_PROFILES:
            yield f"{name}: {profile} is {context[profile].get('type')}"
    selinux = context.get("seLinuxOptions", {})
    if selinux.get("type") not in SAFE_SELINUX or selinux.get("user") or selinux.get("role"):
        yield f"{name}: seLinuxOptions"
    if context.get("windowsOptions", {}).get("hostProcess"):
        yield f"{name}: hostProcess"


def network_allows(manifests: tuple[Manifest, ...], direction: str, port: int, *, protocol: str = "TCP", **peer: Any) -> bool:
    """Whether the policies let a pod without labels talk to, or be reached from, a peer.

    Args:
        manifests: Rendered; only the policies of all pods (``podSelector: {}``) count.
        direction: "ingress" or "egress".
        port: Of the side that listens.
        protocol: TCP or UDP.
        peer: ``address="52.1.2.3"``, or ``namespace="kube-system"`` with the pod's labels as ``labels={...}``.
    """
    policies = [item for item in manifests if item["kind"] == "NetworkPolicy" and item["spec"]["podSelector"] == {}]
    policies = [item["spec"] for item in policies if direction.capitalize() in item["spec"]["policyTypes"]]
    rules = [rule for policy in policies for rule in policy.get(direction, ())]
    side = {"ingress": "from", "egress": "to"}[direction]
    return not policies or any(
        (not rule.get(side) or any(_is_peer(item, **peer) for item in rule[side]))
        and (
            not rule.get("ports")
            or any((item["port"], item.get("protocol", "TCP")) == (port, protocol) for item in rule["ports"])
        )
        for rule in rules
    )


def _is_peer(item: Manifest, *, address: str | None = None, namespace: str | None = None, labels: Manifest | None = None) -> bool:
    if address is not None:
        block = item.get("ipBlock", {})
        inside = ipaddress.ip_address(address)
        return (
            bool(block)
            and inside in ipaddress.ip_network(block["cidr"])
            and not any(inside in ipaddress.ip_network(net) for net in block.get("except", ()))
        )
    if "ipBlock" in item:
        return False
    space, pod = item.get("namespaceSelector"), item.get("podSelector", {})
    its_space = {"kubernetes.io/metadata.name": namespace}
    here = namespace == "cwbass" if space is None else space.get("matchLabels", {}).items() <= its_space.items()
    return here and pod.get("matchLabels", {}).items() <= (labels or {}).items()
