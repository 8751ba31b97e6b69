"""Check the manifests in k8s/, offline: `make k8s-check`.

Every overlay is rendered and every object in it validated strictly: an unknown key is an error. Kubernetes' own kinds are checked
against the schemas in the package kubernetes-validate, others against the definitions (CRDs) in the folder PECO_TEST_SCHEMAS, if it
is given. Pods must meet the pod security standard `restricted`.

    python -m k8s.check                          # overlays, monitoring and single manifests of k8s/
    python -m k8s.check FOLDER | FILE | - …      # a kustomization, a manifest, or what another tool has rendered
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import yaml
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from k8s.pod_security import restricted_violations
from peco.core.errors import PecoError

KUBERNETES = "1.30"
# Kinds without a namespace. Kustomize knows only Kubernetes' own; it gives a namespace to objects of custom kinds.
CLUSTER_SCOPED = {"ClusterRole", "ClusterRoleBinding", "Namespace", "PersistentVolume", "PriorityClass", "StorageClass"}
CUSTOM_CLUSTER_SCOPED = {"Queue"}
# The part of kustomize that `render` knows, which makes no hashes of names.
KUSTOMIZATION = {
    "type": "object",
    "required": ["kind"],
    "dependentRequired": {"configMapGenerator": ["generatorOptions"]},
    "additionalProperties": False,
    "properties": {
        "apiVersion": {"type": "string"},
        "kind": {"const": "Kustomization"},
        "namespace": {"type": "string"},
        "resources": {"items": {"type": "string"}},
        "configMapGenerator": {
            "items": {
                "required": ["name", "files"],
                "additionalProperties": False,
                "properties": {"name": {"type": "string"}, "files": {"items": {"type": "string"}}},
            }
        },
        "generatorOptions": {
            "required": ["disableNameSuffixHash"],
            "additionalProperties": False,
            "properties": {"disableNameSuffixHash": {"const": True}, "labels": {"type": "object"}},
        },
    },
}
Json = dict[str, Any]


@dataclass
class Manifest:
    """An object and the file it was read from."""

    file: str
    object: Json

    @property
    def name(self) -> str:
        metadata = self.object.get("metadata") or {}
        return f"{self.object.get('kind')}/{metadata.get('name') or metadata.get('generateName')}"


def main(argv: Sequence[str] | None = None) -> int:
    """Check the places on the command line; 0, or 2 with one line for each error."""
    parser = argparse.ArgumentParser(prog="python -m k8s.check", description="Check Kubernetes manifests, offline.")
    parser.add_argument("places", nargs="*", metavar="PLACE", help="kustomization folder, manifest or -; default: k8s/")
    paths = parser.parse_args(argv).places
    try:
        definitions = load_definitions(os.environ.get("PECO_TEST_SCHEMAS"))
        wrong = [line for path in paths or default_paths(Path("k8s")) for line in check(path, definitions)]
    except PecoError as error:
        wrong = [str(error)]
    for line in wrong:
        print(f"error: {line}", file=sys.stderr)
    return 2 if wrong else 0


def default_paths(root: Path) -> list[str]:
    """The parts of the project that can be applied: each overlay, the monitoring folder, and single manifests.

    Raises:
        PecoError: the folder is missing.
    """
    if not (root / "overlays").is_dir():
        raise PecoError(f"{root}: not found; run this in the folder of the repository, or name a PLACE")
    return [str(path) for path in (*sorted((root / "overlays").iterdir()), root / "monitoring", *root.glob("*.yaml"))]


def check(path: str, definitions: Mapping[tuple[str, str], Json]) -> list[str]:
    """Print what was checked, and return the errors.

    Raises:
        PecoError: the place can't be read or rendered.
    """
    manifests = load(path)
    skipped = {m.object["kind"] for m in manifests if not _is_core(m.object) and _key(m.object) not in definitions}
    note = f"; not checked, PECO_TEST_SCHEMAS has no definition: {', '.join(sorted(skipped))}" if skipped else ""
    wrong = [f"{m.file}: {m.name}: {text}" for m in manifests for text in violations(m.object, definitions)]
    seen: set[tuple[Any, ...]] = set()
    for manifest in manifests:
        key = (*_key(manifest.object), manifest.name, (manifest.object["metadata"] or {}).get("namespace"))
        if key in seen:
            wrong.append(f"{manifest.file}: {manifest.name}: defined twice")
        seen.add(key)
    print(f"{path}: {len(manifests)} objects, {len(wrong)} errors{note}")
    return wrong


# Rendering


def load(path: str) -> list[Manifest]:
    """The objects of a kustomization folder, of a file, or of standard input (`-`).

    Raises:
        PecoError: it can't be read or rendered.
    """
    if Path(path).is_dir():
        return render(Path(path))
    objects = [document for document in _documents(path) if document is not None]
    for item in objects:
        if not isinstance(item, dict) or not {"apiVersion", "kind", "metadata"} <= item.keys():
            raise PecoError(f"{path}: expected objects with apiVersion, kind and metadata")
    return [Manifest(path, item) for item in objects]


def render(folder: Path) -> list[Manifest]:
    """The output of `kubectl kustomize FOLDER`, for kustomizations that match KUSTOMIZATION.

    Raises:
        PecoError: a file can't be read, or a field is used that this renderer does not know.
    """
    file = folder / "kustomization.yaml"
    documents = _documents(str(file))
    spec: Any = documents[0] if len(documents) == 1 else None
    for text in _schema_violations(spec, KUSTOMIZATION):
        raise PecoError(
            f"{file}: {text}; this check can't render it, use `kubectl kustomize {folder} | python -m k8s.check -`"
        )
    manifests: list[Manifest] = []
    for entry in spec.get("resources", []):
        manifests += load(os.path.normpath(folder / entry))
    manifests += _config_maps(file, spec)
    if "namespace" in spec:
        _set_namespace(manifests, spec["namespace"])
    return manifests


def _documents(path: str) -> list[Any]:
    try:
        text = sys.stdin.read() if path == "-" else Path(path).read_text(encoding="utf-8")
        # Unlike PyYAML, ruamel refuses duplicate keys.
        return list(YAML(typ="safe", pure=True).load_all(text))
    except OSError as error:
        raise PecoError(f"{path}: can't be read: {error.strerror}") from None
    except YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f" line {mark.line + 1}:" if mark else ""
        raise PecoError(f"{path}:{line} {getattr(error, 'problem', None) or error}".splitlines()[0]) from None


def _config_maps(file: Path, spec: Json) -> Iterator[Manifest]:
    options = spec.get("generatorOptions", {})
    for entry in spec.get("configMapGenerator", []):
        data = {}
        for name in entry["files"]:
            try:
                data[Path(name).name] = (file.parent / name).read_text(encoding="utf-8")
            except OSError as error:
                raise PecoError(f"{file.parent / name}: can't be read: {error.strerror}") from None
        metadata = {"name": entry["name"]} | ({"labels": dict(options["labels"])} if "labels" in options else {})
        yield Manifest(str(file), {"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "data": data})


def _set_namespace(manifests: list[Manifest], namespace: str) -> None:
    """As kustomize does: of objects, the name of a Namespace, and subjects that are accounts of this kustomization."""
    accounts = {m.object["metadata"]["name"] for m in manifests if m.object["kind"] == "ServiceAccount"} | {"default"}
    for item in (manifest.object for manifest in manifests):
        if item["kind"] == "Namespace":
            item["metadata"]["name"] = namespace
        elif item["kind"] not in CLUSTER_SCOPED:
            item["metadata"]["namespace"] = namespace
        if item["kind"] in ("RoleBinding", "ClusterRoleBinding"):
            for subject in item.get("subjects", []):
                if subject.get("kind") == "ServiceAccount" and subject.get("name") in accounts:
                    subject.setdefault("namespace", namespace)


# Validation


def load_definitions(folder: str | None) -> dict[tuple[str, str], Json]:
    """Schemas of custom resources, closed against unknown keys, by (apiVersion, kind); empty if no folder is named.

    Raises:
        PecoError: the folder is named and has no definitions.
    """
    if not folder:
        return {}
    definitions = {}
    # Definitions are large: the faster parser.
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    for file in sorted(Path(folder).glob("*.yaml")):
        try:
            documents = list(yaml.load_all(file.read_bytes(), loader))
        except (OSError, yaml.YAMLError) as error:
            raise PecoError(f"{file}: can't be read: {str(error).splitlines()[0]}") from None
        for document in documents:
            if isinstance(document, dict) and document.get("kind") == "CustomResourceDefinition":
                spec = document["spec"]
                for version in spec["versions"]:
                    schema = _closed(version["schema"]["openAPIV3Schema"])
                    key = (f"{spec['group']}/{version['name']}", spec["names"]["kind"])
                    definitions[key] = schema | {"x-scope": spec["scope"]}
    if not definitions:
        raise PecoError(f"PECO_TEST_SCHEMAS={folder}: expected a folder of CustomResourceDefinitions (*.yaml)")
    return definitions


def violations(item: Json, definitions: Mapping[tuple[str, str], Json]) -> list[str]:
    """The errors in an object, one line each: `key: what is wrong`.

    Of a custom resource without a definition only metadata and pods are checked.
    """
    definition = definitions.get(_key(item), {})
    if _is_core(item):
        wrong = _schema_violations(item)
    else:
        # The definition leaves metadata open, which is the same for every object.
        wrong = _schema_violations({"apiVersion": "v1", "kind": "ConfigMap", "metadata": item["metadata"]})
        wrong += _schema_violations(item, definition)
    metadata = item["metadata"] or {}
    if not (metadata.get("name") or metadata.get("generateName")):
        wrong.append("metadata.name: missing")
    cluster_scoped = definition.get("x-scope") == "Cluster" or item["kind"] in CLUSTER_SCOPED | CUSTOM_CLUSTER_SCOPED
    if "namespace" in metadata and cluster_scoped:
        wrong.append("metadata.namespace: this kind belongs to no namespace")
    for number, subject in enumerate(item.get("subjects") or []):
        if subject.get("kind") == "ServiceAccount" and not subject.get("namespace"):
            wrong.append(f"subjects.{number}.namespace: missing")
    if not wrong:  # only valid objects surely have the shape of a pod
        wrong = [f"{path}.{text}" for path, pod in pod_specs(item) for text in restricted_violations(pod)]
    return wrong


def pod_specs(item: Json) -> list[tuple[str, Json]]:
    """Pod specs of a pod, a workload or a Volcano job, each with its dotted place in the object."""
    spec = item.get("spec") or {}
    if item["kind"] == "Pod":
        return [("spec", spec)]
    if item["kind"] == "CronJob":
        return [("spec.jobTemplate.spec.template.spec", spec["jobTemplate"]["spec"]["template"]["spec"])]
    if item["apiVersion"].startswith("batch.volcano.sh/"):
        return [(f"spec.tasks.{n}.template.spec", task["template"]["spec"]) for n, task in enumerate(spec["tasks"])]
    template = spec.get("template") or {}
    return [("spec.template.spec", template["spec"])] if "spec" in template else []


def _key(item: Json) -> tuple[str, str]:
    return item["apiVersion"], item["kind"]


def _is_core(item: Json) -> bool:
    """True if Kubernetes itself defines the kind: its API groups have no dot or end in k8s.io."""
    group = item["apiVersion"].rpartition("/")[0]
    return "." not in group or group.endswith(".k8s.io")


def _schema_violations(item: Any, schema: Json | None = None) -> list[str]:
    """The most relevant error, as lines; without a schema the object is checked against Kubernetes' own."""
    try:
        if schema is None:
            kubernetes_validate.validate(item, KUBERNETES, strict=True)
        else:
            jsonschema.Draft202012Validator(schema).validate(item)
    except kubernetes_validate.SchemaNotFoundError:
        return [f"kind: Kubernetes {KUBERNETES} has no {item['kind']} of {item['apiVersion']}"]
    except jsonschema.ValidationError as error:
        path = [str(part) for part in error.absolute_path]
        if error.validator == "additionalProperties" and isinstance(error.instance, dict):
            unknown = [key for key in error.instance if key not in error.schema.get("properties", {})]
            return [f"{'.'.join([*path, str(key)])}: unknown key" for key in unknown]
        return [f"{'.'.join(path) or 'object'}: {' '.join(error.message.split())[:200]}"]
    return []


def _closed(schema: Any) -> Any:
    """A copy of a CRD's schema in which an object may have no keys other than those it names."""
    if isinstance(schema, list):
        return [_closed(part) for part in schema]
    if not isinstance(schema, dict):
        return schema
    closed = {key: _closed(value) for key, value in schema.items()}
    is_schema = isinstance(schema.get("type"), str)  # not a table of properties, of which one may be called `type`
    if is_schema and "properties" in schema and not schema.get("x-kubernetes-preserve-unknown-fields"):
        closed.setdefault("additionalProperties", False)
    return closed


if __name__ == "__main__":
    sys.exit(main())
