import cProfile, pstats, time
from prefect_federated import simulate
def test_one(prefect_api):
    from prefect_federated.flows.fedavg import fedavg
    for _ in range(2):
        t=time.time(); simulate(fedavg, sites=2, parameters={"executor":"tests.flows.trial_executors","rounds":1}); print("TOOK", time.time()-t)
    pr=cProfile.Profile(); pr.enable()
    simulate(fedavg, sites=2, parameters={"executor":"tests.flows.trial_executors","rounds":1})
    pr.disable(); pstats.Stats(pr).sort_stats("cumtime").print_stats(45)
