"""Entries of this description and of the reference pages."""

from __future__ import annotations

from typing import Final

from gateway.core.errors import Code
from gateway.transports.openapi.document import PROBLEM
from gateway.transports.openapi.operation import Answer, Door, Operation, Parameter, Schema

HTML: Final[Schema] = {"type": "string"}
NAME: Final = Parameter(
    "name", "path", "A page's name, as the list has it.", {"type": "string", "pattern": "^[a-z0-9-]+$"}
)

DOOR: Final = Door(
    name="reference",
    what="What you are reading, as a document and as pages.",
    operations=(
        Operation(
            method="get",
            path="/openapi.json",
            id="describe",
            summary="This document",
            answers={200: Answer(what="An OpenAPI 3.1 document.", media={"application/json": {"type": "object"}})},
        ),
        Operation(
            method="get",
            path="/docs",
            id="listPages",
            summary="The list of reference pages",
            answers={200: Answer(what="A page.", media={"text/html": HTML})},
        ),
        Operation(
            method="get",
            path="/docs/",
            id="findPages",
            summary="The way to the list of reference pages",
            answers={308: Answer(what="The list is at `/docs`.", headers=("location",))},
        ),
        Operation(
            method="get",
            path="/docs/{name}",
            id="readPage",
            summary="A reference page",
            parameters=(NAME,),
            answers={200: Answer(what="The page.", media={"text/html": HTML})},
            errors=(Code.NOT_FOUND,),
        ),
        Operation(
            method="get",
            path="/docs/{name}.md",
            id="readPageSource",
            summary="A reference page as Markdown",
            parameters=(NAME,),
            answers={200: Answer(what="The page.", media={"text/markdown": HTML})},
            errors=(Code.NOT_FOUND,),
        ),
        Operation(
            method="get",
            path="/docs/style.css",
            id="stylePages",
            summary="The reference pages' style",
            answers={200: Answer(what="A style sheet.", media={"text/css": HTML})},
        ),
    ),
    refusals=PROBLEM,
)
