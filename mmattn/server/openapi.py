"""The OpenAPI document of the endpoint."""

from typing import Any

import mmattn

BINARY = {"type": "string", "format": "binary"}
TEXTS = {"type": "array", "items": {"type": "string"}}
NUMBERS = {"type": "array", "items": {"type": "number"}}


def document(about: dict[str, Any], size: float, seconds: float) -> dict[str, Any]:
    """OpenAPI 3.1 of `mmattn serve`.

    Args:
        about: what the pool says of the run.
        size: MB that a request may have.
        seconds: that an upload, and that a prediction may take.
    """
    takes = "a feature file (.npz)" if about["no_raw_clips"] else "a raw clip or a feature file"
    refused = {
        "400": "The form has no file, or more than one; or it is broken.",
        "403": "Another web page sent the request, or it names another host.",
        "408": f"The upload took over {seconds:g} s.",
        "413": f"The request has over {size:g} MB.",
        "422": "The clip cannot be predicted; `detail` is the reason that `mmattn predict` gives.",
        "500": "The process that read the clip died, or something is wrong with the run.",
        "503": "Too many requests wait; `Retry-After` tells in how many seconds to try again.",
        "504": f"The prediction took over {seconds:g} s.",
    }
    answers: dict[str, Any] = {
        "200": _answer("The prediction, as `mmattn predict --json` gives it.", "Answer"),
        **{code: _answer(text, "Refusal") for code, text in refused.items()},
    }
    answers["503"]["headers"] = {"Retry-After": {"schema": {"type": "integer"}}}
    form = {"type": "object", "properties": {"file": BINARY}, "required": ["file"]}
    post = {
        "operationId": "predict",
        "summary": "Predict a clip",
        "description": f"The body is {takes}, of at most {size:g} MB: either as the one file of a "
        "form, or as it is. The suffix of its name (.npz: a feature file) counts as for `mmattn "
        "predict`; without a name, the content tells.",
        "parameters": [
            {
                **{"name": "name", "in": "query", "schema": {"type": "string"}},
                "description": "The clip's name, where the body is no form.",
            }
        ],
        "requestBody": {
            "required": True,
            "content": {
                "multipart/form-data": {"schema": form},
                "application/octet-stream": {"schema": BINARY},
            },
        },
        "responses": answers,
    }
    get = {
        "operationId": "health",
        "summary": "Whether it can predict, and how busy it is",
        "responses": {
            "200": _answer("It can predict.", "Health"),
            "503": _answer("All processes are being replaced.", "Health"),
        },
    }
    return {
        "openapi": "3.1.0",
        "info": {
            **{"title": f"mmattn: {about['run']}", "version": mmattn.__version__},
            "description": " ".join(
                [f"Probabilities of {', '.join(about['classes'])}.", *about["trust"]]
            ),
        },
        "paths": {"/predict": {"post": post}, "/health": {"get": get}},
        "components": {"schemas": _schemas(about["classes"])},
    }


def _answer(description: str, schema: str) -> dict[str, Any]:
    content = {"schema": {"$ref": f"#/components/schemas/{schema}"}}
    return {"description": description, "content": {"application/json": content}}


def _schemas(classes: list[str]) -> dict[str, Any]:
    probability = {"type": "number", "minimum": 0, "maximum": 1}
    attention = {
        "type": "object",
        "description": "By modality; weights of the frames, at times in seconds.",
        "additionalProperties": _object(times=NUMBERS, weights=NUMBERS),
    }
    prediction = _object(
        clip={"type": "string"},
        predicted={"enum": classes},
        probabilities=_object(**{name: probability for name in classes}),
        attention=attention,
        missing=TEXTS,
        notes=TEXTS,
    )
    return {
        "Answer": _object(
            run={"type": "string"},
            checkpoint={"type": "string"},
            networks={"type": "integer"},
            calibrated={"type": "boolean"},
            trust=TEXTS,
            predictions={"type": "array", "items": prediction, "minItems": 1, "maxItems": 1},
            failures={"type": "array", "maxItems": 0},
        ),
        "Refusal": _object(detail={"type": "string"}),
        "Health": _object(
            status={"enum": ["ok", "starting"]},
            run={"type": "string"},
            **{name: {"type": "integer"} for name in ("workers", "busy", "places", "taken")},
        ),
    }


def _object(**properties: dict) -> dict[str, Any]:
    """A JSON object that has these properties and no other."""
    return {
        **{"type": "object", "properties": properties, "required": [*properties]},
        "additionalProperties": False,
    }
