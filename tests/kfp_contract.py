"""Checks of requests to Kubeflow Pipelines and of answers, against the published OpenAPI document."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from jsonschema import Draft4Validator

DOCUMENT = "kfp_api_v2beta1.swagger.json"


class Contract:
    """Checks of requests and answers against the OpenAPI (Swagger 2.0) document."""

    def __init__(self, path: Path) -> None:
        document = json.loads(path.read_text())
        self.definitions = {name: _strict(schema) for name, schema in document["definitions"].items()}
        self.requests: dict[str, Any] = {name: _input(schema) for name, schema in self.definitions.items()}
        self.paths = [
            (re.compile(re.sub(r"\{[^}]+\}", "[^/:]+", path)), methods) for path, methods in document["paths"].items()
        ]

    def operation(self, method: str, path: str) -> dict[str, Any] | None:
        """The document's entry for a request, None if there is none."""
        found = (methods.get(method.lower()) for pattern, methods in self.paths if pattern.fullmatch(path))
        return next((operation for operation in found if operation), None)

    def faults(self, operation: dict[str, Any], query: dict[str, list[str]], body: object) -> list[str]:
        """The faults of a request."""
        parameters = {parameter["name"]: parameter for parameter in operation.get("parameters", ())}
        faults = [
            f"query {name}: not in the document" for name in query if parameters.get(name, {}).get("in") != "query"
        ]
        for name, values in query.items():
            kind = parameters.get(name, {}).get("type")
            if len(values) != 1 or (kind == "integer" and not values[0].isdecimal()):
                faults.append(f"query {name}: {values}")
        if "filter" in query:
            faults += self._errors(self.requests, "v2beta1Filter", json.loads(query["filter"][0]))
        bodies = [parameter["schema"] for parameter in parameters.values() if parameter["in"] == "body"]
        if not bodies:
            return faults + (["a body where there is none"] if body is not None else [])
        return faults + self._errors(self.requests, bodies[0]["$ref"].rpartition("/")[2], body)

    def check_answer(self, operation: dict[str, Any], answer: object) -> None:
        """Fail for an answer that the document doesn't allow."""
        schema = operation["responses"]["200"]["schema"]
        if "$ref" in schema:
            assert not (errors := self._errors(self.definitions, schema["$ref"].rpartition("/")[2], answer)), errors

    @staticmethod
    def _errors(definitions: dict[str, Any], name: str, data: object) -> list[str]:
        validator = Draft4Validator({"$ref": f"#/definitions/{name}", "definitions": definitions})
        return [f"{'.'.join(map(str, error.path))}: {error.message}" for error in validator.iter_errors(data)]


def _strict(schema: Any) -> Any:
    """The schema with unknown fields refused, and with long integers checked to be strings of digits."""
    if isinstance(schema, list):
        return [_strict(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    strict = {key: _strict(value) for key, value in schema.items()}
    if isinstance(schema.get("properties"), dict) and "additionalProperties" not in schema:
        strict["additionalProperties"] = False
    if schema.get("type") == "string" and schema.get("format") == "int64":
        strict["pattern"] = "^-?[0-9]+$"
    return strict


def _input(schema: dict[str, Any]) -> dict[str, Any]:
    """The schema without fields that only the server sets."""
    properties = {
        name: value
        for name, value in schema.get("properties", {}).items()
        if not value.get("readOnly") and not value.get("description", "").startswith("Output")
    }
    required = [name for name, value in properties.items() if value.get("description", "").startswith("Required input")]
    return (
        {**schema, "properties": properties, **({"required": required} if required else {})} if properties else schema
    )
