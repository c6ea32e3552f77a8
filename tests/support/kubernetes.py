"""What the Dask operator for Kubernetes takes."""

from importlib.resources import files

import jsonschema
import pytest
import yaml


def closed(schema):
    """Return a schema that knows no other keys than those it lists: Kubernetes would drop them without a word."""
    if isinstance(schema, list):
        return [closed(inner) for inner in schema]
    if not isinstance(schema, dict):
        return schema
    inner = {key: closed(value) for key, value in schema.items()}
    if isinstance(schema.get("properties"), dict) and schema.get("type") == "object":
        inner.setdefault("additionalProperties", False)
    return inner


def manifest_validator():
    """Return the function that raises where a DaskCluster is not what the operator takes."""
    pytest.importorskip("dask_kubernetes", reason="dask-kubernetes is not installed")
    path = files("dask_kubernetes") / "operator/deployment/helm/dask-kubernetes-operator/crds/daskcluster.yaml"
    (version,) = yaml.safe_load(path.read_text())["spec"]["versions"]
    schema = closed(version["schema"]["openAPIV3Schema"])
    for key in ("apiVersion", "kind", "metadata"):  # what every resource has
        schema["properties"].setdefault(key, {})
    return jsonschema.Draft202012Validator(schema).validate
