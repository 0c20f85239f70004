"""The parameters of an SVM job, and what of them contradicts itself. Needs no scikit-learn."""

from typing import ClassVar, Literal

from pydantic import Field

from prefect_federated.errors import ConfigurationError
from prefect_federated.tasks.tabular import TabularJob

WITHOUT_ROWS = (
    "Without any row leaving: method 'fourier' (a linear SVM in random Fourier features, from sums "
    "over the sites), or method 'ensemble' (each site's SVM in such features votes)."
)


class SvmJob(TabularJob):
    """The parameters of an SVM job."""

    imports: ClassVar[tuple[str, ...]] = (
        *TabularJob.imports,
        "prefect_federated.adapters.sklearn.saved",
        "prefect_federated.adapters.sklearn.preprocessing",
        "sklearn.svm",
    )

    executor: str = Field(
        default="prefect_federated.adapters.sklearn.svm",
        description="Executor that the sites run; the built-in one trains SVMs.",
        pattern=r"^[A-Za-z_][\w.]*(:[A-Za-z_]\w*)?$",
    )
    method: Literal["fourier", "ensemble", "support_vectors"] = Field(
        default="fourier",
        description="'fourier': a linear SVM in Fourier features that all sites share, from sums; "
        "'ensemble': each site's SVM, together; 'support_vectors': one SVM of all sites' support "
        "vectors, which are rows of the data.",
    )
    share_support_vectors: bool = Field(
        default=False,
        description="Whether support vectors, which are rows of the data, may leave the sites; "
        "each site's dataset must say raw_rows: true, too.",
    )
    objective: Literal["binary", "multiclass"] = Field(
        default="binary", description="Two classes, or more."
    )
    kernel: Literal["rbf", "linear", "poly"] = Field(default="rbf", description="The kernel.")
    gamma: float | None = Field(
        default=None,
        gt=0,
        description="The kernel's gamma; if empty, 1 / (columns x variance of all sites' encoded "
        "rows), scikit-learn's 'scale'.",
    )
    degree: int = Field(default=3, ge=1, le=20, description="Degree of the kernel 'poly'.")
    C: float = Field(default=1.0, gt=0, description="Weight of the loss against the margin.")
    components: int = Field(
        default=500, ge=1, le=5000, description="Random Fourier features of the kernel 'rbf'."
    )
    vote: Literal["score", "vote"] = Field(
        default="score",
        description="An ensemble decides by the mean of calibrated scores, or by votes; both "
        "weighted by the sites' rows.",
    )
    rounds: int = Field(
        default=60,
        ge=1,
        le=1000,
        description="Newton steps of 'fourier' at most; it ends at the optimum, mostly after 7.",
    )

    @property
    def rows_leave(self) -> bool:
        """Whether the job asks for rows."""
        return self.method == "support_vectors" or (
            self.method == "ensemble" and self.share_support_vectors and self.kernel != "linear"
        )


def check(job: SvmJob) -> None:
    """Refuses a job that contradicts itself, before any site is asked.

    Raises:
        ConfigurationError: rows would leave and the job does not say so, or says so in vain; or its
            method does not know its kernel.
    """
    if job.method == "support_vectors" and not job.share_support_vectors:
        raise ConfigurationError(
            "method 'support_vectors' sends each site's support vectors to the server, and they "
            "are rows of its training data: rows of patients, where patients are what the data are "
            "of, and often a third of all. No site was asked. If rows may leave, set "
            "share_support_vectors=true; each site must allow it, too, with `raw_rows: true` in "
            f"the privacy section of its dataset. {WITHOUT_ROWS}"
        )
    if job.share_support_vectors and not job.rows_leave:
        raise ConfigurationError(
            f"share_support_vectors=true, and method {job.method!r} with kernel {job.kernel!r} "
            "sends no support vectors. Leave it out, or take method 'support_vectors'."
        )
    if job.kernel == "poly" and not job.rows_leave:
        raise ConfigurationError(
            f"method {job.method!r} has Fourier features of the kernel 'rbf' only, not of 'poly'. "
            "Take kernel 'rbf' or 'linear', or a method with share_support_vectors=true."
        )
