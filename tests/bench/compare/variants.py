"""The same contenders on another Python, or in another environment."""

from __future__ import annotations

import shutil
import sys
from dataclasses import dataclass

import click

from tests.bench.stack import Runtime


@dataclass(frozen=True, slots=True)
class Variant:
    """The gateway and the bare relay once more, on another Python or with other variables of the environment."""

    name: str
    runtime: Runtime


class VariantType(click.ParamType[Variant]):
    name = "variant"

    def convert(self, value: str | Variant, param: click.Parameter | None, ctx: click.Context | None) -> Variant:
        if isinstance(value, Variant):
            return value
        name, found, rest = value.partition("=")
        python, *variables = rest.split(",")
        if not found or not name or not all("=" in one for one in variables):
            self.fail(f"{value!r} is not NAME=[PYTHON][,VARIABLE=VALUE…]", param, ctx)
        place = shutil.which(python or sys.executable)
        if place is None:
            self.fail(f"no program {python!r}", param, ctx)
        return Variant(name, Runtime(place, dict(one.split("=", 1) for one in variables)))
