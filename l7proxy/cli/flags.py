"""Command-line flags defined in a table, for commands that share them or have too many for a signature."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable
from typing import Annotated, Any


def flag(name: str, kind: Any, option: Any) -> inspect.Parameter:
    """`--name`, None by default. `option` is a typer.Option."""
    annotation = Annotated[kind | None, option]
    return inspect.Parameter(
        name.replace("-", "_"), inspect.Parameter.KEYWORD_ONLY, default=None, annotation=annotation
    )


def with_flags(command: Callable[..., None], name: str, parameters: Iterable[inspect.Parameter]) -> Callable[..., None]:
    """Adds these flags to `command`, which gets the given ones as one mapping in its parameter `name`."""
    added = list(parameters)
    names = {one.name for one in added}

    def run(**given: Any) -> None:
        collected = {key: given.pop(key) for key in list(given) if key in names}
        command(**given, **{name: {key: value for key, value in collected.items() if value is not None}})

    own = [one for one in inspect.signature(command, eval_str=True).parameters.values() if one.name != name]
    # Typer reads the signature and the annotations, and takes the help from the docstring.
    run.__signature__ = inspect.Signature([*own, *added])  # type: ignore[attr-defined]
    run.__annotations__ = {one.name: one.annotation for one in [*own, *added]}
    run.__doc__, run.__name__ = command.__doc__, command.__name__
    return run
