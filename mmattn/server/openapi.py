"""The OpenAPI document of the endpoint."""

from typing import Any

import mmattn

BINARY = {"type": "string", "format": "binary"}


def document(about: dict[str, Any], size: float, seconds: float) -> dict[str, Any]:
    """OpenAPI 3.1 of `mmattn serve`.

    Args:
        about: see `Pool`.
        size: maximum size of a request (MB).
        seconds: maximum duration of an upload, and of a prediction.
    """
    example = about["example"]
    takes = "a feature file (.npz)" if about["no_raw_clips"] else "a raw clip or a feature file"
    refused = {
        "400": "The form is broken, or does not have exactly one file.",
        "403": "Another web page sent the request, or it names another host.",
        "408": f"The upload took over {seconds:g} s.",
        "413": f"The request is larger than {size:g} MB.",
        "422": "The clip cannot be predicted; `detail` is the reason that `mmattn predict` gives.",
        "500": "The process that read the clip died, or something is wrong with the run.",
        "503": "Too many requests are waiting; `Retry-After`: seconds until to try again.",
        "504": f"The prediction took over {seconds:g} s.",
    }
    answers = {code: _answer(text, {"detail": text}) for code, text in refused.items()}
    form = {"type": "object", "properties": {"file": BINARY}, "required": ["file"]}
    post = {
        "summary": f"Predict a clip: {takes}, as a form's file or as the body",
        "parameters": [{"name": "name", "in": "query", "schema": {"type": "string"}}],
        "requestBody": {
            "required": True,
            "content": {
                "multipart/form-data": {"schema": form},
                "application/octet-stream": {"schema": BINARY},
            },
        },
        "responses": {"200": _answer("As `mmattn predict --json`.", example), **answers},
    }
    state = {"status": "ok", "run": about["run"], "workers": 1, "places": 1, "taken": 0}
    health = {"200": _answer("It can predict.", state), "503": _answer("Not now.", state)}
    get = {"summary": "Whether it can predict, and how busy it is", "responses": health}
    return {
        "openapi": "3.1.0",
        "info": {
            **{"title": f"mmattn: {about['run']}", "version": mmattn.__version__},
            "description": " ".join(example["trust"]),
        },
        "paths": {"/predict": {"post": post}, "/health": {"get": get}},
    }


def _answer(description: str, example: dict[str, Any]) -> dict[str, Any]:
    content = {"application/json": {"schema": schema_of(example)}}
    return {"description": description, "content": content}


def schema_of(value: Any) -> dict[str, Any]:
    """The JSON schema of values like this one.

    >>> schema_of({"weights": [0.5]})["properties"]["weights"]
    {'type': 'array', 'items': {'type': 'number'}}
    """
    if isinstance(value, dict):
        return {"type": "object", "properties": {key: schema_of(one) for key, one in value.items()}}
    if isinstance(value, list):
        return {"type": "array", "items": schema_of(value[0]) if value else {}}
    names = {bool: "boolean", int: "integer", float: "number", str: "string"}
    return {"type": names[type(value)]}
