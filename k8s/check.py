"""Check the manifests in k8s/, offline: `make k8s-check`.

Every overlay is rendered and every object in it validated strictly: an unknown key is an error. Kubernetes' own kinds are checked
against the schemas in the package kubernetes-validate, others against the definitions (CRDs) in the folder PECO_TEST_SCHEMAS, where
that is given. Pods must meet the pod security standard `restricted`.

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
from typing import Any, TextIO

import yaml

from k8s.pod_security import restricted_violations
from peco.core.errors import PecoError

KUBERNETES = "1.30"
LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
FIELDS = {"apiVersion", "kind", "namespace", "resources", "configMapGenerator", "generatorOptions"}
CLUSTER_SCOPED = {
    "ClusterRole",
    "ClusterRoleBinding",
    "Namespace",
    "PersistentVolume",
    "PriorityClass",
    "Queue",
    "StorageClass",
}
Json = dict[str, Any]

__all__ = ["check", "load", "load_definitions", "main", "pod_specs", "render", "restricted_violations", "violations"]


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
    """Check what the command line names; 0, or 2 with one line for each error."""
    parser = argparse.ArgumentParser(prog="python -m k8s.check", description="Check Kubernetes manifests, offline.")
    parser.add_argument("places", nargs="*", metavar="PLACE", help="kustomization folder, manifest or -; default: k8s/")
    named = parser.parse_args(argv).places
    try:
        places = named or default_places(Path("k8s"))
        definitions = load_definitions(os.environ.get("PECO_TEST_SCHEMAS"))
        wrong = [line for place in places for line in check(place, definitions)]
    except PecoError as error:
        wrong = [str(error)]
    for line in wrong:
        print(f"error: {line}", file=sys.stderr)
    return 2 if wrong else 0


def default_places(root: Path) -> list[str]:
    """What of the project can be applied: each overlay, the monitoring folder, and single manifests.

    Raises:
        PecoError: the folder is not there.
    """
    if not (root / "overlays").is_dir():
        raise PecoError(f"{root}: not found; run this in the folder of the repository, or name a PLACE")
    return [str(place) for place in (*sorted((root / "overlays").iterdir()), root / "monitoring", *root.glob("*.yaml"))]


def check(place: str, definitions: Mapping[tuple[str, str], Json]) -> list[str]:
    """Say on stdout what was checked, and return the errors.

    Raises:
        PecoError: the place can't be read or rendered.
    """
    manifests = load(place)
    skipped = sorted(
        {m.object["kind"] for m in manifests if not _is_core(m.object) and _key(m.object) not in definitions}
    )
    note = f"; not checked, PECO_TEST_SCHEMAS has no definition: {', '.join(skipped)}" if skipped else ""
    wrong = [f"{m.file}: {m.name}: {text}" for m in manifests for text in violations(m.object, definitions)]
    seen: set[tuple[Any, ...]] = set()
    for manifest in manifests:
        key = (*_key(manifest.object), manifest.name, (manifest.object.get("metadata") or {}).get("namespace"))
        if key in seen:
            wrong.append(f"{manifest.file}: {manifest.name}: defined twice")
        seen.add(key)
    print(f"{place}: {len(manifests)} objects, {len(wrong)} errors{note}")
    return wrong


# Rendering


def load(place: str) -> list[Manifest]:
    """The objects of a kustomization folder, of a file, or of standard input (`-`).

    Raises:
        PecoError: it can't be read or rendered.
    """
    if place == "-":
        return _objects(_parse(sys.stdin, "-"), "-")
    return render(Path(place)) if Path(place).is_dir() else read(Path(place))


def render(folder: Path) -> list[Manifest]:
    """What `kubectl kustomize FOLDER` prints, for kustomizations that use FIELDS alone.

    Raises:
        PecoError: a file can't be read, or a field is used that this renderer does not know.
    """
    file = folder / "kustomization.yaml"
    documents = _documents(file)
    spec = documents[0] if len(documents) == 1 and isinstance(documents[0], dict) else {}
    if spec.get("kind") != "Kustomization":
        raise PecoError(f"{file}: expected one object of kind Kustomization")
    _refuse_unknown(file, spec, FIELDS)
    manifests: list[Manifest] = []
    for entry in spec.get("resources", []):
        path = Path(os.path.normpath(folder / entry))
        manifests += render(path) if path.is_dir() else read(path)
    manifests += _config_maps(file, spec)
    if "namespace" in spec:
        _set_namespace(manifests, spec["namespace"])
    return manifests


def read(file: Path) -> list[Manifest]:
    """The objects of a manifest.

    Raises:
        PecoError: it can't be read, or holds something else.
    """
    return _objects(_documents(file), str(file))


def _objects(documents: list[Any], name: str) -> list[Manifest]:
    objects = [document for document in documents if document is not None]
    for item in objects:
        if not isinstance(item, dict) or not {"apiVersion", "kind", "metadata"} <= item.keys():
            raise PecoError(f"{name}: expected objects with apiVersion, kind and metadata")
    return [Manifest(name, item) for item in objects]


def _documents(file: Path) -> list[Any]:
    try:
        with open(file, encoding="utf-8") as stream:
            return _parse(stream, str(file))
    except OSError as error:
        raise PecoError(f"{file}: can't be read: {error.strerror}") from None


def _parse(stream: TextIO, name: str) -> list[Any]:
    from ruamel.yaml import YAML  # refuses a key that is there twice, which PyYAML lets pass
    from ruamel.yaml.error import YAMLError

    try:
        return list(YAML(typ="safe", pure=True).load_all(stream))
    except YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f" line {mark.line + 1}:" if mark else ""
        raise PecoError(f"{name}:{line} {getattr(error, 'problem', None) or error}".splitlines()[0]) from None


def _config_maps(file: Path, spec: Json) -> Iterator[Manifest]:
    options = spec.get("generatorOptions", {})
    _refuse_unknown(file, options, {"disableNameSuffixHash", "labels"}, "generatorOptions.")
    for number, entry in enumerate(spec.get("configMapGenerator", [])):
        _refuse_unknown(file, entry, {"name", "files"}, f"configMapGenerator.{number}.")
        if options.get("disableNameSuffixHash") is not True:
            raise PecoError(
                f"{file}: generatorOptions.disableNameSuffixHash: expected true; this check makes no hashes of names"
            )
        data = {}
        for name in entry["files"]:
            try:
                data[Path(name).name] = (file.parent / name).read_text(encoding="utf-8")
            except OSError as error:
                raise PecoError(f"{file.parent / name}: can't be read: {error.strerror}") from None
        metadata = {"name": entry["name"]} | ({"labels": dict(options["labels"])} if "labels" in options else {})
        yield Manifest(str(file), {"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "data": data})


def _refuse_unknown(file: Path, given: Json, known: set[str], at: str = "") -> None:
    for key in given:
        if key not in known:
            raise PecoError(
                f"{file}: {at}{key}: this check can't render it; use `kubectl kustomize {file.parent} | "
                "python -m k8s.check -`"
            )


def _set_namespace(manifests: list[Manifest], namespace: str) -> None:
    """As kustomize does: objects, the name of a Namespace, and subjects that are accounts of this kustomization."""
    accounts = {m.object["metadata"]["name"] for m in manifests if m.object["kind"] == "ServiceAccount"} | {"default"}
    for item in (manifest.object for manifest in manifests):
        if item["kind"] == "Namespace":
            item["metadata"]["name"] = namespace
        elif item["kind"] not in CLUSTER_SCOPED - {
            "Queue"
        }:  # kustomize takes every kind it does not know for a namespaced one
            item["metadata"]["namespace"] = namespace
        if item["kind"] in ("RoleBinding", "ClusterRoleBinding"):
            for subject in item.get("subjects", []):
                if subject.get("kind") == "ServiceAccount" and subject.get("name") in accounts:
                    subject.setdefault("namespace", namespace)


# Validation


def load_definitions(folder: str | None) -> dict[tuple[str, str], Json]:
    """Schemas of custom resources, closed against unknown keys, by (apiVersion, kind); none where no folder is named.

    Raises:
        PecoError: the folder is named and has no definitions.
    """
    if not folder:
        return {}
    definitions = {}
    for file in sorted(Path(folder).glob("*.yaml")):
        try:
            documents = list(yaml.load_all(file.read_bytes(), Loader=LOADER))  # large, and not ours: the faster parser
        except (OSError, yaml.YAMLError) as error:
            raise PecoError(f"{file}: can't be read: {str(error).splitlines()[0]}") from None
        for document in documents:
            if isinstance(document, dict) and document.get("kind") == "CustomResourceDefinition":
                spec = document["spec"]
                for version in spec["versions"]:
                    schema = version["schema"]["openAPIV3Schema"]
                    key = (f"{spec['group']}/{version['name']}", spec["names"]["kind"])
                    definitions[key] = _closed(schema) | {"x-scope": spec["scope"]}
    if not definitions:
        raise PecoError(f"PECO_TEST_SCHEMAS={folder}: expected a folder of CustomResourceDefinitions (*.yaml)")
    return definitions


def violations(item: Json, definitions: Mapping[tuple[str, str], Json]) -> list[str]:
    """What is wrong with an object, a line each: `key: what`.

    Of a custom resource without a definition only metadata and pods are checked.
    """
    if _is_core(item):
        wrong = _core_violations(item)
    else:
        # The definition leaves metadata open; it is that of every object.
        wrong = _core_violations({"apiVersion": "v1", "kind": "ConfigMap", "metadata": item["metadata"]})
        if schema := definitions.get(_key(item)):
            wrong += _schema_violations(item, schema)
    metadata = item["metadata"] or {}
    if not (metadata.get("name") or metadata.get("generateName")):
        wrong.append("metadata.name: missing")
    scope = definitions.get(_key(item), {}).get("x-scope")
    if "namespace" in metadata and (scope == "Cluster" or item["kind"] in CLUSTER_SCOPED):
        wrong.append("metadata.namespace: this kind belongs to no namespace")
    for number, subject in enumerate(item.get("subjects") or []):
        if subject.get("kind") == "ServiceAccount" and not subject.get("namespace"):
            wrong.append(f"subjects.{number}.namespace: missing")
    if not wrong:  # the shape is known to be right
        for at, pod in pod_specs(item):
            wrong += [f"{at}.{text}" for text in restricted_violations(pod)]
    return wrong


def pod_specs(item: Json) -> list[tuple[str, Json]]:
    """Pod specs in an object, each with its place: of a pod, a workload or a Volcano job."""
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
    """Whether Kubernetes itself defines the kind: its API groups have no dot or end in k8s.io."""
    group = item["apiVersion"].rpartition("/")[0]
    return "." not in group or group.endswith(".k8s.io")


def _core_violations(item: Json) -> list[str]:
    import jsonschema
    import kubernetes_validate

    try:
        kubernetes_validate.validate(item, KUBERNETES, strict=True)
    except kubernetes_validate.SchemaNotFoundError:
        return [f"kind: Kubernetes {KUBERNETES} has no {item['kind']} of {item['apiVersion']}"]
    except jsonschema.ValidationError as error:
        return _explain(error)
    return []


def _schema_violations(item: Json, schema: Json) -> list[str]:
    import jsonschema

    return [
        line
        for error in jsonschema.Draft202012Validator(schema).iter_errors(item)
        for line in _explain(jsonschema.exceptions.best_match([error]))
    ]


def _explain(error: Any) -> list[str]:
    """Lines `key: what is wrong` for an error of jsonschema."""
    place = [str(part) for part in error.absolute_path]
    if error.validator == "additionalProperties" and isinstance(error.instance, dict):
        unknown = [key for key in error.instance if key not in error.schema.get("properties", {})]
        return [f"{'.'.join([*place, str(key)])}: unknown key" for key in unknown]
    return [f"{'.'.join(place) or 'object'}: {' '.join(error.message.split())[:200]}"]


def _closed(schema: Any) -> Any:
    """A copy of a CRD's schema in which an object may have no other keys than those it names."""
    if isinstance(schema, list):
        return [_closed(part) for part in schema]
    if not isinstance(schema, dict):
        return schema
    closed = {key: _closed(value) for key, value in schema.items()}
    is_schema = isinstance(schema.get("type"), str)  # and no table of properties, one of which may be called `type`
    if is_schema and "properties" in schema and not schema.get("x-kubernetes-preserve-unknown-fields"):
        closed.setdefault("additionalProperties", False)
    return closed


if __name__ == "__main__":
    sys.exit(main())
