"""k-means: clusters of all sites' rows, seeded over all of them, with an inertia that never rises.

Source: Arthur and Vassilvitskii 2007, "k-means++: The Advantages of Careful Seeding", section 2.2;
Lloyd 1982, "Least Squares Quantization in PCM", section III. The seeding is of means of groups of
the sites' rows, not of rows.
"""

from prefect import flow

from prefect_federated.tasks.federation import federation
from prefect_federated.tasks.kmeans import KMeansJob, KMeansRef, Lloyd
from prefect_federated.tasks.parameters import takes


@flow(name="kmeans", retries=2, persist_result=True, result_serializer="json")
@takes(KMeansJob)
def kmeans(job: KMeansJob) -> KMeansRef:
    """Finds clusters in the rows of all sites."""
    with federation(job) as fed:
        lloyd = Lloyd(fed, job)
        while not lloyd.is_done:
            lloyd.ask()
        return lloyd.publish()
