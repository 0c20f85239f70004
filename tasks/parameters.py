"""What every job asks for, and how a job's fields become a flow's parameters.

A job's parameters are one pydantic model. Prefect shows a flow's own parameters as a form and takes
them one by one (`--param rounds=5`), so the model's fields are made the flow's parameters.
"""

import functools
import inspect
from collections.abc import Callable, Collection
from typing import Annotated, Any, ClassVar, TypeAlias, TypeVar, get_type_hints

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, JsonValue

from prefect_federated.filters import FilterSpec
from prefect_federated.transport.calls import CallTerms

Job = TypeVar("Job", bound="JobParameters")
Result = TypeVar("Result")


def _share_or_count(quorum: float) -> float:
    if quorum > 1 and quorum != int(quorum):
        raise ValueError(
            f"{quorum:g} is neither a share (above 0, up to 1) nor a whole number of sites"
        )
    return quorum


Quorum: TypeAlias = Annotated[float, Field(gt=0), AfterValidator(_share_or_count)]


class JobParameters(BaseModel):
    """The parameters that all jobs have."""

    model_config = ConfigDict(extra="forbid")

    imports: ClassVar[tuple[str, ...]] = ()
    """Modules that a job imports when it needs them, which takes seconds: a simulation does so
    while its Prefect server starts, if they are installed."""

    executor: str = Field(
        description="Executor that the sites run, by its import path there: 'package.module' or "
        "'package.module:name'.",
        pattern=r"^[A-Za-z_][\w.]*(:[A-Za-z_]\w*)?$",
    )
    config: dict[str, JsonValue] = Field(
        default={},
        description="Settings for the executor, such as the learning rate, as a JSON object.",
    )
    seed: int = Field(default=0, ge=0, lt=2**32, description="Seed of all that is random.")
    sites: list[str] | None = Field(
        default=None, description="Sites that take part; all sites of the federation if empty."
    )
    min_sites: int | None = Field(
        default=None,
        ge=1,
        description="Sites that must have joined before the first round. If empty: all of "
        "`sites`, or where that is empty too, all sites that are online.",
    )
    join_timeout_s: float = Field(
        default=120, gt=0, description="Seconds to wait for that many sites to join."
    )
    quorum: Quorum = Field(
        default=0.7,
        description="Sites that must answer a round: up to 1 a share of those asked, rounded up; "
        "above 1 a count.",
    )
    round_timeout_s: float = Field(
        default=3600, gt=0, description="Seconds after which a round goes on without a site."
    )
    grace_s: float | None = Field(
        default=None,
        ge=0,
        description="Seconds that a round still waits for the other sites once the quorum is "
        "there; if empty, it waits until its timeout.",
    )
    late_weight: float = Field(
        default=0,
        ge=0,
        le=1,
        description="Factor on the weight of an update that comes after its round has ended, for "
        "each round of delay: it counts in the next round. 0 drops it.",
    )
    lost_after_s: float = Field(
        default=30,
        gt=0,
        description="Seconds without a connection after which a round goes on without a site.",
    )
    max_failures: int | None = Field(
        default=3,
        ge=1,
        description="Failures in a row after which a site is left out until it answers again; if "
        "empty, sites are asked however often they fail.",
    )
    in_flight: int | None = Field(
        default=None,
        ge=1,
        description="Sites that work at the same time at most; all that are asked if empty.",
    )
    updates_in_memory: int = Field(
        default=2,
        ge=1,
        le=64,
        description="Updates in the server's memory at the same time, beside their running sum; "
        "the others wait at their sites.",
    )

    filters: list[FilterSpec] = Field(
        default=[],
        description="Filters on the way between server and sites, in order: a list of objects such "
        'as {"filter": "cast", "at": "leaving_site", "to": "float16"}.',
    )

    @property
    def quorum_terms(self) -> int | float:
        """The quorum as a call has it: a count (int) or a share (float)."""
        return int(self.quorum) if self.quorum > 1 else self.quorum

    def updates_needed(self, asked: int) -> int:
        """Returns the number of updates that make the job's quorum among `asked` sites."""
        return CallTerms(quorum=self.quorum_terms).updates_needed(asked)


def takes(
    model: type[Job], *, without: Collection[str] = ()
) -> Callable[[Callable[[Job], Result]], Callable[..., Result]]:
    """Turns a function of a job into one whose parameters are the job's fields.

    Put it between `@flow` and the function, so that the Prefect UI shows one form field for each
    field, with its description, range and default.

    Args:
        model: The job's parameters.
        without: Fields that mean nothing to this flow: they keep their defaults, and are no
            parameters of it.

    >>> @takes(JobParameters)
    ... def executor_of(job: JobParameters) -> str:
    ...     return job.executor
    >>> executor_of(executor="hospital.heart")
    'hospital.heart'
    """

    def decorate(function: Callable[[Job], Result]) -> Callable[..., Result]:
        @functools.wraps(function)
        def with_fields(**given: Any) -> Result:
            return function(model(**given))

        hints = get_type_hints(model, include_extras=True)
        fields = {n: field for n, field in model.model_fields.items() if n not in without}
        parameters = [
            inspect.Parameter(
                name,
                inspect.Parameter.KEYWORD_ONLY,
                default=inspect.Parameter.empty if field.is_required() else field.default,
                annotation=(
                    Annotated[hints[name], *field.metadata] if field.metadata else hints[name]
                ),
            )
            for name, field in fields.items()
        ]
        parameters.sort(  # what must be given first, then the job's own, then what all jobs have
            key=lambda parameter: (
                parameter.default is not inspect.Parameter.empty,
                parameter.name in JobParameters.model_fields,
            )
        )
        with_fields.imports = model.imports  # type: ignore[attr-defined]
        with_fields.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        with_fields.__annotations__ = {p.name: p.annotation for p in parameters}
        lines = [f"    {name}: {field.description}" for name, field in fields.items()]
        summary = inspect.getdoc(function) or ""
        with_fields.__doc__ = summary + "\n\nArgs:\n" + "\n".join(lines)
        return with_fields

    return decorate
