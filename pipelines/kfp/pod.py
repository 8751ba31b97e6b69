"""The environment of a step in its pod.

Kubeflow copies a pod's settings into its record of the run several times for each step. So a pod receives only what differs from
the defaults here, and secrets as folders.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, MutableMapping
from pathlib import Path

from peco.core.errors import PecoError
from pipelines.workflow import environment

GIT_FOLDER = "/etc/peco/git"
# Secrets whose keys become environment variables.
STORAGE_FOLDER = "/etc/peco/storage"
STEP_FOLDER = "/etc/peco/step"
NAMESPACE_FILE = Path("/var/run/secrets/kubernetes.io/serviceaccount/namespace")
DEFAULTS = {
    environment.SCHEDULER.name: "kubernetes",
    environment.SERVICE_ACCOUNT.name: "peco-job",
    environment.PULL_POLICY.name: environment.PULL_POLICY.default,
    environment.VOLUME_CLAIM.name: "peco",
    environment.VOLUME_PATH.name: environment.VOLUME_PATH.default,
    environment.GIT_CREDENTIALS.name: GIT_FOLDER,
}


def enter(env: MutableMapping[str, str] = os.environ) -> None:
    """Complete the environment of this process, and set its umask.

    Raises:
        PecoError: PECO_UMASK is not allowed.
    """
    # Argo starts containers with umask 0: every user could write to the folders on the volume.
    os.umask(umask(env))
    for folder in (STEP_FOLDER, STORAGE_FOLDER):
        for name, value in secret(Path(folder)).items():
            env.setdefault(name, value)
    volume = environment.VOLUME_PATH.text(env)
    if Path(environment.CA_FOLDER).is_dir():
        for name, value in environment.CA_VARIABLES.items():
            env.setdefault(name, value)
    defaults = {
        **DEFAULTS,
        environment.WORKSPACES.name: f"{volume}/workspaces",
        environment.CACHE.name: f"{volume}/cache",
        # Kubeflow sets these in every pod, for its launcher.
        environment.POD_NAME.name: env.get("KFP_POD_NAME", ""),
        environment.POD_UID.name: env.get("KFP_POD_UID", ""),
    }
    if NAMESPACE_FILE.is_file():
        defaults[environment.NAMESPACE.name] = NAMESPACE_FILE.read_text(encoding="utf-8").strip()
    for name, value in defaults.items():
        if value:
            env.setdefault(name, value)
    # The folder that every pod may write to; DVC's state in it need not be shared.
    env["HOME"] = "/tmp"
    env["DVC_SITE_CACHE_DIR"] = "/tmp/dvc"


def umask(env: Mapping[str, str]) -> int:
    """The umask of a step.

    Raises:
        PecoError: it is no octal number of three digits.
    """
    text = environment.UMASK.text(env)
    if not re.fullmatch(r"0?[0-7]{3}", text):
        raise PecoError(f"{environment.UMASK.name}: {text!r} is not allowed; expected three octal digits, such as 022")
    return int(text, 8)


def secret(folder: Path) -> dict[str, str]:
    """The values of a mounted secret by their keys, those that can be names of environment variables; none without the folder."""
    if not folder.is_dir():
        return {}
    return {
        file.name: file.read_text(encoding="utf-8", errors="surrogateescape").rstrip("\n")
        for file in folder.iterdir()
        if re.fullmatch(r"[A-Za-z_]\w*", file.name) and file.is_file()
    }
