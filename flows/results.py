"""What flows return, stored as JSON and read as what it was.

Prefect writes a typed value as {"__class__": …, "data": …}; when it reads, it takes an object that has "data" for a
result in its own former form, and gives back a dict. So the value has another key here.
"""

from __future__ import annotations

from typing import Any

from prefect.serializers import JSONSerializer, prefect_json_object_decoder, prefect_json_object_encoder

from crafter_pipeline.errors import PipelineError


def to_json(value: Any) -> Any:
    """For what JSON does not know."""
    encoded = prefect_json_object_encoder(value)
    return {"value" if key == "data" else key: part for key, part in encoded.items()}


def from_json(found: dict[str, Any]) -> Any:
    """What `to_json` was given; any other object as it is. An error that is made of more than its message comes back as
    a PipelineError that has the message."""
    if "__class__" in found and "value" in found:
        return prefect_json_object_decoder({"__class__": found["__class__"], "data": found["value"]})
    try:
        return prefect_json_object_decoder(found)
    except TypeError:
        if "__exc_type__" not in found:
            raise
        return PipelineError(found["message"])


RESULTS: JSONSerializer[Any] = JSONSerializer(
    object_encoder=f"{__name__}.to_json", object_decoder=f"{__name__}.from_json"
)
