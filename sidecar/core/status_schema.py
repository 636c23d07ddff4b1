"""The JSON Schema of ``/status``, generated from its classes; imported only to write it."""

from __future__ import annotations

from typing import Any

from pydantic import TypeAdapter

from sidecar.core.status import Status


def json_schema() -> dict[str, Any]:
    """Return the schema as ``docs/status.schema.json`` holds it.

    What is None in the classes is left out of the answer, so no property may be null.
    """
    schema = TypeAdapter(Status).json_schema()
    for shape in (schema, *schema["$defs"].values()):
        for prop in shape.get("properties", {}).values():
            _forbid_null(prop)
        if "properties" in shape:
            shape["required"] = sorted(
                name for name, prop in shape["properties"].items() if not prop.pop("x-absent", None)
            )
    return {"$schema": "https://json-schema.org/draft/2020-12/schema"} | schema


def _forbid_null(prop: dict[str, Any]) -> None:
    choices = [choice for choice in prop.get("anyOf", ()) if choice != {"type": "null"}]
    if len(choices) == 1:
        del prop["anyOf"]
        prop.update(choices[0])
        prop["x-absent"] = True
        if prop.get("default", ...) is None:
            del prop["default"]
