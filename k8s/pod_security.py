"""Kubernetes' pod security standard `restricted`, as far as it concerns a pod's own fields."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

Json = dict[str, Any]

VOLUMES = {
    "configMap", "csi", "downwardAPI", "emptyDir", "ephemeral", "persistentVolumeClaim", "projected", "secret",
}  # fmt: skip
SECCOMP = ("RuntimeDefault", "Localhost")
CAPABILITIES = {"NET_BIND_SERVICE"}
SELINUX_TYPES = {"", "container_t", "container_init_t", "container_kvm_t", "container_engine_t"}
SYSCTLS = {
    "kernel.shm_rmid_forced", "net.ipv4.ip_local_port_range", "net.ipv4.ip_local_reserved_ports",
    "net.ipv4.ip_unprivileged_port_start", "net.ipv4.ping_group_range", "net.ipv4.tcp_fin_timeout",
    "net.ipv4.tcp_keepalive_intvl", "net.ipv4.tcp_keepalive_probes", "net.ipv4.tcp_keepalive_time", "net.ipv4.tcp_rmem",
    "net.ipv4.tcp_syncookies", "net.ipv4.tcp_wmem",
}  # fmt: skip


def restricted_violations(pod_spec: Json) -> list[str]:
    """Violations of the standard, one line each: `containers.NAME.securityContext.KEY: what is needed`.

    Args:
        pod_spec: as in JSON, of a valid pod.
    """
    pod = pod_spec.get("securityContext") or {}
    wrong = [f"{key}: must be false" for key in ("hostNetwork", "hostPID", "hostIPC") if pod_spec.get(key)]
    for volume in pod_spec.get("volumes") or []:
        for kind in volume.keys() - {"name"} - VOLUMES:
            wrong.append(f"volumes.{volume['name']}.{kind}: no volume of this type is allowed")
    wrong += [f"securityContext.{text}" for text in _forbidden(pod)]
    for sysctl in pod.get("sysctls") or []:
        if sysctl["name"] not in SYSCTLS:
            wrong.append(f"securityContext.sysctls.{sysctl['name']}: not allowed")
    for group in ("initContainers", "containers", "ephemeralContainers"):
        for container in pod_spec.get(group) or []:
            place, own = f"{group}.{container['name']}", container.get("securityContext") or {}
            wrong += [f"{place}.securityContext.{text}" for text in (*_forbidden(own), *_required(own, pod))]
            if any(port.get("hostPort") for port in container.get("ports") or []):
                wrong.append(f"{place}.ports.hostPort: must not be set")
    return wrong


def _forbidden(context: Json) -> Iterator[str]:
    """Settings that neither a pod's nor a container's securityContext may have."""
    if context.get("runAsUser") == 0:
        yield "runAsUser: must not be 0 (root)"
    if context.get("runAsNonRoot") is False:
        yield "runAsNonRoot: must be true"
    seccomp = (context.get("seccompProfile") or {}).get("type", SECCOMP[0])
    if seccomp not in SECCOMP:
        yield f"seccompProfile.type: {seccomp} is not allowed; expected {' or '.join(SECCOMP)}"
    if (context.get("appArmorProfile") or {}).get("type") == "Unconfined":
        yield "appArmorProfile.type: must not be Unconfined"
    selinux = context.get("seLinuxOptions") or {}
    if selinux.get("user") or selinux.get("role") or selinux.get("type", "") not in SELINUX_TYPES:
        yield "seLinuxOptions: user, role and types other than the container ones are not allowed"
    if (context.get("windowsOptions") or {}).get("hostProcess"):
        yield "windowsOptions.hostProcess: must be false"


def _required(own: Json, pod: Json) -> Iterator[str]:
    """Settings that each container needs, in its own securityContext or in that of its pod."""
    if own.get("runAsNonRoot", pod.get("runAsNonRoot")) is None:
        yield "runAsNonRoot: must be true, here or in the pod's securityContext"
    if not (own.get("seccompProfile") or pod.get("seccompProfile")):
        yield "seccompProfile.type: must be RuntimeDefault or Localhost, here or in the pod's securityContext"
    if own.get("allowPrivilegeEscalation") is not False:
        yield "allowPrivilegeEscalation: must be false"
    if own.get("privileged"):
        yield "privileged: must be false"
    if own.get("procMount", "Default") != "Default":
        yield "procMount: must be Default"
    capabilities = own.get("capabilities") or {}
    if "ALL" not in (capabilities.get("drop") or []):
        yield "capabilities.drop: must have ALL"
    for name in sorted(set(capabilities.get("add") or []) - CAPABILITIES):
        yield f"capabilities.add: {name} is not allowed"
