"""What every job asks for, and how a job's fields become a flow's parameters.

A job's parameters are one pydantic model. Prefect shows a flow's own parameters as a form and takes
them one by one (`--param rounds=5`), so the model's fields are made the flow's parameters.
"""

import functools
import inspect
from collections.abc import Callable
from typing import Annotated, Any, TypeVar, get_type_hints

from pydantic import BaseModel, ConfigDict, Field, JsonValue

from prefect_federated.transport.calls import CallTerms

Job = TypeVar("Job", bound="JobParameters")
Result = TypeVar("Result")


class JobParameters(BaseModel):
    """The parameters that all jobs have."""

    model_config = ConfigDict(extra="forbid")

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
    quorum: float = Field(
        default=0.7,
        gt=0,
        le=1,
        description="Share of the sites asked that must answer a round, rounded up.",
    )
    round_timeout_s: float = Field(
        default=3600, gt=0, description="Seconds after which a round goes on without a site."
    )
    lost_after_s: float = Field(
        default=30,
        gt=0,
        description="Seconds without a connection after which a round goes on without a site.",
    )

    def updates_needed(self, asked: int) -> int:
        """Returns the number of updates that make the job's quorum among `asked` sites."""
        return CallTerms(quorum=self.quorum).updates_needed(asked)


def takes(
    model: type[Job],
) -> Callable[[Callable[[Job], Result]], Callable[..., Result]]:
    """Turns a function of a job into one whose parameters are the job's fields.

    Put it between `@flow` and the function, so that the Prefect UI shows one form field for each
    field, with its description, range and default.

    >>> @takes(JobParameters)
    ... def executor_of(job: JobParameters) -> str:
    ...     return job.executor
    >>> executor_of(executor="hospital.heart")
    'hospital.heart'
    """

    def decorate(function: Callable[[Job], Result]) -> Callable[..., Result]:
        @functools.wraps(function)
        def with_fields(**fields: Any) -> Result:
            return function(model(**fields))

        hints = get_type_hints(model, include_extras=True)
        parameters = [
            inspect.Parameter(
                name,
                inspect.Parameter.KEYWORD_ONLY,
                default=inspect.Parameter.empty if field.is_required() else field.default,
                annotation=(
                    Annotated[hints[name], *field.metadata] if field.metadata else hints[name]
                ),
            )
            for name, field in model.model_fields.items()
        ]
        parameters.sort(  # what must be given first, then the job's own, then what all jobs have
            key=lambda parameter: (
                parameter.default is not inspect.Parameter.empty,
                parameter.name in JobParameters.model_fields,
            )
        )
        with_fields.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        with_fields.__annotations__ = {p.name: p.annotation for p in parameters}
        lines = [f"    {name}: {field.description}" for name, field in model.model_fields.items()]
        summary = inspect.getdoc(function) or ""
        with_fields.__doc__ = summary + "\n\nArgs:\n" + "\n".join(lines)
        return with_fields

    return decorate
