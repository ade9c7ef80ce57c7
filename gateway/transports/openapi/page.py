"""Entries of the chat page's files, and of those that other sites load."""

from __future__ import annotations

from typing import Final

from gateway.core.errors import Code
from gateway.transports.openapi.document import PROBLEM
from gateway.transports.openapi.operation import TEXT, Answer, Door, Operation, Parameter

FILES: Final = ("text/html", "text/css", "text/javascript", "text/plain", "image/svg+xml")
EMBEDDED: Final = (
    ("/client.js", "loadClient", "The client, for browsers and Node", "text/javascript"),
    ("/client.d.ts", "loadClientTypes", "The client's types", "text/plain"),
    ("/widget.js", "loadWidget", "The chat bubble", "text/javascript"),
)

DOOR: Final = Door(
    name="page",
    what="A chat page that speaks to the native door, and what other sites load to have one of their own.",
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
        *(
            Operation(
                method="get",
                path=path,
                id=id,
                summary=summary,
                answers={200: Answer(what="The file, for pages of any origin.", media={media: TEXT})},
            )
            for path, id, summary, media in EMBEDDED
        ),
    ),
    refusals=PROBLEM,
)
