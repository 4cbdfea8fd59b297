"""Named fields that do not change."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

if TYPE_CHECKING:
    from typing_extensions import Self, dataclass_transform
else:

    def dataclass_transform(**_: bool) -> Any:
        return lambda cls: cls


@dataclass_transform(frozen_default=True)
class Value:
    """What a frozen dataclass is, for type checkers too: its fields are the annotated names.

    Every start of a tool makes some. Importing dataclasses takes 10 ms, as it imports inspect, and
    the methods that it writes for each class another 10; named tuples would take 2.
    """

    _fields: ClassVar[tuple[str, ...]] = ()
    _defaults: ClassVar[dict[str, Any]] = {}

    def __init_subclass__(cls) -> None:
        own = tuple(cls.__annotations__)
        cls._fields += own
        cls._defaults = cls._defaults | {n: vars(cls)[n] for n in own if n in vars(cls)}

    def __init__(self, *values: Any, **named: Any) -> None:
        """Fields in their order, or by name. Raises TypeError for what is missing or too much."""
        given = dict(zip(self._fields, values))  # noqa: B905 - too many are told below
        found = {**self._defaults, **given, **named}
        twice = len(given) < len(values) or given.keys() & named.keys()
        if twice or found.keys() != set(self._fields):
            raise TypeError(f"{type(self).__name__} is made of {', '.join(self._fields)}")
        vars(self).update(found)

    def _replace(self, **changes: Any) -> Self:
        """The same but for some fields."""
        return type(self)(**{**vars(self), **changes})

    def __setattr__(self, name: str, value: Any) -> None:
        raise AttributeError(f"{type(self).__name__}.{name} cannot be set: see _replace()")

    def __delattr__(self, name: str) -> None:
        raise AttributeError(f"{type(self).__name__}.{name} cannot be deleted")

    def _values(self) -> tuple[Any, ...]:
        return tuple(vars(self)[name] for name in self._fields)

    def __eq__(self, other: object) -> bool:
        return type(other) is type(self) and vars(other) == vars(self)

    def __hash__(self) -> int:
        return hash(self._values())

    def __repr__(self) -> str:
        shown = ", ".join(f"{name}={vars(self)[name]!r}" for name in self._fields)
        return f"{type(self).__name__}({shown})"
