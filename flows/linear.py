"""Linear models: least squares, ridge, elastic net, logistic, multinomial and Poisson regression.

Models of squares take one round of sums; the others take a few, of Newton's method. Either way the
coefficients are those of the pooled rows, which stay where they are.

Source: of the sums, Seber and Lee 2003, "Linear Regression Analysis", section 3.1, and Nelder and
Wedderburn 1972, "Generalized Linear Models", section 2.
"""

from prefect import flow

from prefect_federated.tasks.federation import federation
from prefect_federated.tasks.linear import Linear, LinearJob, LinearRef
from prefect_federated.tasks.parameters import takes


@flow(name="linear", retries=2, persist_result=True, result_serializer="json")
@takes(LinearJob)
def linear(job: LinearJob) -> LinearRef:
    """Fits a linear model to the rows of all sites, as if they were pooled."""
    with federation(job) as fed:
        fitting = Linear(fed, job)
        while not fitting.is_done:
            fitting.ask()
        return fitting.publish()
