"""The groups into which a settings class sorts its fields, for help texts and configuration files."""

from __future__ import annotations

import inspect

from pydantic import BaseModel


class Group(str):
    """The title of a group. In the body of a settings class, the fields below it belong to it::

    in_model: ClassVar[Group] = Group("Model")
    cell: str = "lstm"
    """


def groups_of(kind: type[BaseModel]) -> dict[str, list[str]]:
    """Title -> the fields of the group. Groups and fields are in the order of the class, after those of its bases.

    A field that a subclass defines again moves to the group in which the subclass has it.
    """
    places: dict[str, str] = {}
    groups: dict[str, list[str]] = {}
    for base in reversed(kind.__mro__):
        title = "Flags"
        for name in inspect.get_annotations(base):
            value = vars(base).get(name)
            if isinstance(value, Group):
                title = str(value)
                groups.setdefault(title, [])
            elif name in kind.model_fields:
                places[name] = title
    for name, title in places.items():
        groups.setdefault(title, []).append(name)
    return groups
