"""From an OpenAPI document to the HTML that `/docs` and the docs site show: operations by tag, then every schema."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib import resources
from typing import Any

from markupsafe import Markup

from dipole.web.api_reference.templates import render_template

Schema = Mapping[str, Any]
SCHEMAS = "#/components/schemas/"
STATIC = resources.files(__package__) / "static"
STATIC_FILES = {name: (STATIC / name).read_bytes() for name in ("style.css", "icon.svg")}
BOUNDS = {
    "minimum": "at least {}",
    "exclusiveMinimum": "more than {}",
    "maximum": "at most {}",
    "exclusiveMaximum": "less than {}",
    "multipleOf": "a multiple of {}",
    "minLength": "at least {} characters",
    "maxLength": "at most {} characters",
    "minItems": "at least {} items",
    "maxItems": "at most {} items",
    "maxProperties": "at most {} entries",
    "pattern": "matches {}",
}


@dataclass(frozen=True)
class Field:
    """A parameter or a property. `kind` is its type as HTML; `remarks` are its default and its bounds."""

    name: str
    kind: Markup
    description: str
    is_required: bool
    remarks: tuple[str, ...]
    place: str = ""  # of a parameter: path, query, header


@dataclass(frozen=True)
class DescribedAnswer:
    status: str
    description: str
    kind: Markup | None


@dataclass(frozen=True)
class Operation:
    anchor: str
    method: str
    path: str
    summary: str
    description: str
    parameters: tuple[Field, ...]
    bodies: tuple[tuple[str, Markup], ...]  # media type, type
    answers: tuple[DescribedAnswer, ...]
    example: str | None


@dataclass(frozen=True)
class DescribedSchema:
    name: str
    description: str
    kind: Markup
    fields: tuple[Field, ...]


def render_content(document: Mapping[str, Any], *, example_url: str, key_setting: str | None) -> Markup:
    """HTML of an OpenAPI document, below one <h1>. `key_setting` names the setting of the key, where one is wanted."""
    return render_template(
        "content.html",
        title=document["info"]["title"],
        version=document["info"]["version"],
        description=document["info"].get("description", ""),
        tags=_operations_by_tag(document, example_url, key_setting),
        schemas=[_describe_schema(*each) for each in sorted(document["components"]["schemas"].items())],
        key_setting=key_setting,
    )


def render_standalone_page(document: Mapping[str, Any], *, example_url: str, release: str, home: str) -> str:
    """A whole HTML page of an OpenAPI document, which loads STATIC_FILES from its own folder and no module."""
    content = render_content(document, example_url=example_url, key_setting=None)
    return render_template(
        "standalone.html", title=document["info"]["title"], release=release, home=home, content=content
    )


def _operations_by_tag(
    document: Mapping[str, Any], example_url: str, key_setting: str | None
) -> list[tuple[str, str, list[Operation]]]:
    """(tag, description, operations), the tags in the document's own order."""
    known = {tag["name"]: tag.get("description", "") for tag in document.get("tags", ())}
    found: dict[str, list[Operation]] = {name: [] for name in known}
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            tag = operation.get("tags", ["other"])[0]
            described = _describe_operation(method, path, operation, document)
            example = _curl_line(method, path, operation, document, example_url, key_setting)
            found.setdefault(tag, []).append(Operation(**described, example=example))
    return [(name, known.get(name, ""), operations) for name, operations in found.items() if operations]


def _describe_operation(
    method: str, path: str, operation: Mapping[str, Any], document: Mapping[str, Any]
) -> dict[str, Any]:
    body = operation.get("requestBody", {}).get("content", {})
    return {
        "anchor": operation["operationId"],
        "method": method.upper(),
        "path": path,
        "summary": operation.get("summary", ""),
        "description": operation.get("description", ""),
        "parameters": tuple(_describe_parameter(each) for each in operation.get("parameters", ())),
        "bodies": tuple((media_type, kind_of(each.get("schema", {}))) for media_type, each in body.items()),
        "answers": tuple(_describe_answers(operation["responses"])),
    }


def _describe_parameter(parameter: Mapping[str, Any]) -> Field:
    schema = parameter.get("schema", {})
    return Field(
        name=parameter["name"],
        kind=kind_of(schema),
        description=parameter.get("description") or schema.get("description", ""),
        is_required=parameter.get("required", False),
        remarks=tuple(_remarks_of(schema)),
        place=parameter["in"],
    )


def _describe_answers(responses: Mapping[str, Mapping[str, Any]]) -> Iterator[DescribedAnswer]:
    for status, response in responses.items():
        content = response.get("content", {})
        kinds = [
            kind_of(each["schema"]) if each.get("schema") else Markup.escape(media_type)
            for media_type, each in content.items()
        ]
        yield DescribedAnswer(
            status="others" if status == "default" else status,
            description=response.get("description", ""),
            kind=Markup(", ").join(dict.fromkeys(kinds)) if kinds else None,
        )


def _curl_line(
    method: str,
    path: str,
    operation: Mapping[str, Any],
    document: Mapping[str, Any],
    example_url: str,
    key_setting: str | None,
) -> str | None:
    """A shell line that sends the operation's example; None where the document has none."""
    media = operation.get("requestBody", {}).get("content", {}).get("application/json", {})
    schema = _resolve(media.get("schema", {}), document)
    examples = [media["example"]] if "example" in media else schema.get("examples", [])
    if not examples:
        return None
    lines = [f"  {json.dumps(name)}: {json.dumps(value, ensure_ascii=False)}" for name, value in examples[0].items()]
    text = "{{\n{}\n}}".format(",\n".join(lines)).replace("'", "'\\''")
    key = f' \\\n  -H "Authorization: Bearer ${key_setting}"' if key_setting else ""
    verb = "" if method == "post" else f" -X {method.upper()}"
    return f"curl -s{verb} {example_url}{path} -H 'content-type: application/json'{key} -d '{text}'"


def _resolve(schema: Schema, document: Mapping[str, Any]) -> Schema:
    name = schema.get("$ref", "").removeprefix(SCHEMAS)
    resolved: Schema = document["components"]["schemas"][name] if name else schema
    return resolved


def _describe_schema(name: str, schema: Schema) -> DescribedSchema:
    required = schema.get("required", ())
    fields = tuple(
        Field(
            name=each,
            kind=kind_of(inner),
            description=inner.get("description", ""),
            is_required=each in required,
            remarks=tuple(_remarks_of(inner)),
        )
        for each, inner in schema.get("properties", {}).items()
    )
    return DescribedSchema(name, schema.get("description", ""), kind_of(schema), fields)


def kind_of(schema: Schema) -> Markup:
    """A schema's type in words, with links to the schemas that it names."""
    if "$ref" in schema:
        name = schema["$ref"].removeprefix(SCHEMAS)
        return Markup('<a href="#schema-{0}">{0}</a>').format(name)
    if "const" in schema:
        return Markup("<code>{}</code>").format(json.dumps(schema["const"]))
    if "enum" in schema:
        return Markup(" or ").join(Markup("<code>{}</code>").format(json.dumps(each)) for each in schema["enum"])
    for several in ("anyOf", "oneOf", "allOf"):
        if several in schema:
            return Markup(" or ").join(dict.fromkeys(kind_of(each) for each in schema[several]))
    kind = schema.get("type")
    if kind == "array":
        inner = schema.get("items") or (schema.get("prefixItems") or [{}])[0]
        return Markup("list of {}").format(kind_of(inner))
    if kind == "object" and isinstance(values := schema.get("additionalProperties"), Mapping) and values:
        return Markup("object of {}").format(kind_of(values))
    if schema.get("format") == "binary" or "contentMediaType" in schema:
        return Markup("file")
    return Markup.escape(kind if isinstance(kind, str) else "any value")


def _remarks_of(schema: Schema) -> Iterator[str]:
    if "default" in schema:
        yield f"default {json.dumps(schema['default'], ensure_ascii=False)}"
    for part in (schema, *schema.get("anyOf", ())):
        for name, words in BOUNDS.items():
            if name in part:
                value = part[name]
                whole = int(value) if isinstance(value, float) and value.is_integer() else value
                yield words.format(whole) if whole != 1 else words.format(whole).rstrip("s")
