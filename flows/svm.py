"""Support vector machines over sites: by random Fourier features, as an ensemble, or by rows.

`fourier` (Rahimi and Recht 2007, "Random features for large-scale kernel machines"): a linear SVM
in features that all sites compute alike, trained from sums to the optimum of the pooled rows.
`ensemble`: each site's own SVM, whose calibrated scores are averaged, or which vote.
`support_vectors` (Caragea, Caragea and Honavar 2005, "Learning support vector machines from
distributed data sources"): one SVM of all sites' support vectors. Those are rows of the data, so
this refuses to run unless the job and each site's dataset say that rows may leave.
"""

from prefect import flow

from prefect_federated.tasks.federation import federation
from prefect_federated.tasks.installed import needs
from prefect_federated.tasks.parameters import takes
from prefect_federated.tasks.svm import SvmJob, check
from prefect_federated.tasks.tabular import FittedRef


@flow(name="svm", retries=2, persist_result=True, result_serializer="json")
@takes(SvmJob)
def svm(job: SvmJob) -> FittedRef:
    """Trains one support vector machine, or an ensemble of them, on the data of many sites."""
    check(job)
    with needs("sklearn,statistics"):
        from prefect_federated.tasks.svm_steps import Svm
    with federation(job) as fed:
        steps = Svm(fed, job)
        steps.alone()
        if job.method == "fourier":
            model = steps.fourier()
        elif job.method == "ensemble":
            model = steps.ensemble()
        else:
            model = steps.support_vectors()
        return steps.publish(model)
