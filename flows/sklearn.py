"""Any scikit-learn estimator that learns by `partial_fit`, over sites.

Naive Bayes is made exactly of sums by class, in one round. Linear estimators trained by stochastic
gradients are averaged after each round, by rows (McMahan et al. 2017, "Communication-Efficient
Learning of Deep Networks from Decentralized Data", Algorithm 1). All others go from site to site,
each of which trains on (Chang et al. 2018, "Distributed deep learning networks among institutions
for medical imaging").
"""

from prefect import flow

from prefect_federated.tasks.federation import federation
from prefect_federated.tasks.installed import needs
from prefect_federated.tasks.parameters import takes
from prefect_federated.tasks.sklearn import SklearnJob
from prefect_federated.tasks.tabular import FittedRef


@flow(name="sklearn", retries=2, persist_result=True, result_serializer="json")
@takes(SklearnJob)
def sklearn(job: SklearnJob) -> FittedRef:
    """Trains one scikit-learn estimator on the data of many sites."""
    with needs("sklearn,statistics"):
        from prefect_federated.tasks.sklearn_steps import Learner, look
    look(job)
    with federation(job) as fed:
        learner = Learner(fed, job)
        learner.alone()
        model = learner.exact() if learner.way == "exact" else learner.rounds()
        return learner.publish(model)
