"""An entry of a job's list of filters: which one, where, and its arguments; as JSON."""

import importlib
from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    ModelWrapValidatorHandler,
    ValidationError,
    field_validator,
    model_validator,
)

from prefect_federated.errors import ConfigurationError
from prefect_federated.filters.cast import Cast
from prefect_federated.filters.clip import Clip
from prefect_federated.filters.difference import Difference
from prefect_federated.filters.exclude import Exclude
from prefect_federated.filters.int8 import Int8
from prefect_federated.filters.own import Own
from prefect_federated.filters.passage import Filter, Point, is_filter, is_marked
from prefect_federated.filters.top_k import TopK
from prefect_federated.messages import JsonValue

OwnFilter: TypeAlias = Cast | Clip | Difference | Exclude | Int8 | Own | TopK
ENCODINGS = (Cast, Int8, TopK)

_OWN: Mapping[str, type[OwnFilter]] = {
    own.name: own for own in (Cast, Clip, Difference, Exclude, Int8, Own, TopK)
}
_LEAVING = (Point.LEAVING_SERVER, Point.LEAVING_SITE)
_OF_UPDATES = (Point.LEAVING_SITE, Point.ENTERING_SERVER)
_POINTS: Mapping[type[OwnFilter], tuple[Point, ...]] = {
    Cast: _LEAVING,
    Int8: _LEAVING,
    TopK: (Point.LEAVING_SITE,),
    Clip: _OF_UPDATES,
    Difference: (Point.LEAVING_SITE,),
    Exclude: tuple(Point),
}
_FIXED = {Own.name: (Point.LEAVING_SITE, Point.ENTERING_SITE)}


class FilterSpec(BaseModel):
    """One filter of a job's list; fields besides these three are the filter's arguments.

    >>> FilterSpec(filter="clip", at="leaving_site", max_norm=1.0).filter
    'clip'

    Raises:
        ConfigurationError: there is no such filter, it cannot stand there, or an argument is
            wrong. A filter with an import path is not imported here: it may be installed at the
            sites only.
    """

    model_config = ConfigDict(extra="allow", frozen=True)

    filter: str = Field(
        description=f"{', '.join(sorted(_OWN))}, or an import path 'package.module:name' of what "
        "is marked with @message_filter."
    )
    at: Point | None = Field(
        default=None,
        description="The point on a message's way where the filter stands; left out for 'own', "
        "which stands at both points of a site.",
    )
    kinds: tuple[str, ...] | None = Field(
        default=None,
        description="Kinds of site task that it is for. If empty: all, but 'initialize' only for "
        "'exclude' and filters with an import path.",
    )

    @field_validator("filter")
    @classmethod
    def _is_known(cls, filter: str) -> str:
        module, _, name = filter.partition(":")
        is_path = name.isidentifier() and all(part.isidentifier() for part in module.split("."))
        if filter not in _OWN and not is_path:
            raise ValueError(
                f"there is no such filter; write one of {', '.join(sorted(_OWN))}, or an import "
                "path 'package.module:name'"
            )
        return filter

    @model_validator(mode="wrap")
    @classmethod
    def _told(cls, value: Any, handler: ModelWrapValidatorHandler["FilterSpec"]) -> "FilterSpec":
        try:
            spec = handler(value)
        except ValidationError as error:
            if not isinstance(value, dict) or "filter" not in value:
                raise ConfigurationError(
                    f"an entry of the filters is {str(value)[:80]}; it must be an object such as "
                    '{"filter": "cast", "at": "leaving_site", "to": "float16"}.'
                ) from error
            raise ConfigurationError(_explained(str(value["filter"]), error)) from error
        if spec.filter in _OWN:
            spec.build()
        if spec.filter in _FIXED:
            if spec.at is not None:
                raise ConfigurationError(
                    f"filter {spec.filter!r} stands at "
                    f"{' and '.join(_FIXED[spec.filter])}; leave out 'at'."
                )
        elif spec.at is None:
            raise ConfigurationError(f"filter {spec.filter!r}: the argument 'at' is missing.")
        elif spec.filter in _OWN:
            allowed = _POINTS[_OWN[spec.filter]]
            if spec.at not in allowed:
                raise ConfigurationError(
                    f"filter {spec.filter!r} cannot stand at {spec.at.value!r}; it may stand at "
                    f"{' or '.join(point.value for point in allowed)}."
                )
        return spec

    @property
    def points(self) -> tuple[Point, ...]:
        """The points where the filter stands."""
        return _FIXED[self.filter] if self.at is None else (self.at,)

    @property
    def arguments(self) -> dict[str, Any]:
        """The filter's arguments."""
        return dict(self.model_extra or {})

    def covers(self, kind: str) -> bool:
        """Returns whether the filter is for this kind of site task.

        The initial model is nobody's change and is sent once: own filters but `exclude` leave it
        as it is, unless `kinds` names it.
        """
        if self.kinds is not None:
            return kind in self.kinds
        return kind != "initialize" or self.filter == "exclude" or self.filter not in _OWN

    def to_json(self) -> dict[str, JsonValue]:
        """Returns the entry as JSON values, from which `FilterSpec` makes it again."""
        return self.model_dump(mode="json", exclude_none=True)

    def build(self) -> Filter:
        """Returns the filter itself.

        Raises:
            ConfigurationError: an argument is wrong, or the import path leads to no filter.
        """
        own = _OWN.get(self.filter)
        if own is None:
            return _imported(self.filter, self.arguments)
        try:
            return own.model_validate(self.arguments)
        except ValidationError as error:
            raise ConfigurationError(_explained(self.filter, error)) from error


def _explained(filter: str, error: ValidationError) -> str:
    first = error.errors(include_url=False, include_context=False)[0]
    argument = ".".join(str(part) for part in first["loc"])
    said = first["msg"].removeprefix("Value error, ")
    if first["type"] == "missing":
        return f"filter {filter!r}: the argument {argument!r} is missing."
    if first["type"] == "extra_forbidden":
        return f"filter {filter!r} has no argument {argument!r}."
    if not argument:
        return f"filter {filter!r}: {said}."
    return f"filter {filter!r}: {argument!r} is {str(first['input'])[:80]!r}: {said}."


def _imported(path: str, arguments: Mapping[str, Any]) -> Filter:
    module_name, _, name = path.partition(":")
    try:
        module = importlib.import_module(module_name)
    except (Exception, SystemExit) as error:  # a script without a __main__ guard may exit
        raise ConfigurationError(
            f"filter {path!r}: `import {module_name}` failed here with {type(error).__name__}: "
            f"{error}. Install its package here, or name its folder with --code at the start."
        ) from error
    target = getattr(module, name, None)
    if target is None:
        raise ConfigurationError(f"filter {path!r}: module {module_name!r} has no {name!r}.")
    if not is_marked(target):
        raise ConfigurationError(
            f"filter {path!r}: {name!r} is not marked with @message_filter, so it is not called."
        )
    if not arguments and is_filter(target):
        found: Filter = target
        return found
    return _made(path, target, arguments)


def _made(path: str, factory: Callable[..., Any], arguments: Mapping[str, Any]) -> Filter:
    try:
        made: Filter = factory(**arguments)
    except Exception as error:
        raise ConfigurationError(
            f"filter {path!r} with {', '.join(arguments) or 'no arguments'}: "
            f"{type(error).__name__}: {error}."
        ) from error
    if not callable(made):
        raise ConfigurationError(
            f"filter {path!r} made a {type(made).__name__}; it must make a callable "
            "`(message, passage) -> message`."
        )
    return made
