"""Entries of the chat page's files."""

from __future__ import annotations

from typing import Final

from gateway.core.errors import Code
from gateway.transports.openapi.document import PROBLEM
from gateway.transports.openapi.operation import TEXT, Answer, Door, Operation, Parameter

FILES: Final = ("text/html", "text/css", "text/javascript", "text/plain", "image/svg+xml")

DOOR: Final = Door(
    name="page",
    what="A chat page that speaks to the native door.",
    operations=(
        Operation(
            method="get",
            path="/",
            id="openPage",
            summary="The chat page",
            answers={200: Answer(what="The page.", media={"text/html": TEXT})},
        ),
        Operation(
            method="get",
            path="/page/{path}",
            id="loadPageFile",
            summary="A file of the chat page",
            parameters=(Parameter("path", "path", "The file's name.", {"type": "string", "minLength": 1}),),
            answers={
                200: Answer(
                    what="The file.",
                    media=dict.fromkeys(FILES, TEXT),
                )
            },
            errors=(Code.NOT_FOUND,),
        ),
    ),
    refusals=PROBLEM,
)
