"""Federated linear regression in NumPy: the smallest job that can be written."""

import numpy as np

from prefect_federated import Site, Tensors, Update, executor, simulate


@executor
def initialize(model: Tensors, site: Site) -> Update:
    """Returns the model that the first round starts from."""
    return Update({"slopes": np.zeros(3)})


@executor
def train(model: Tensors, site: Site) -> Update:
    """Returns the model after one gradient step on the site's own rows, which stay here."""
    random = np.random.default_rng(site.seed)  # a real site reads its files in site.data
    x = random.normal(size=(200, 3))
    y = x @ [2.0, -3.0, 0.5] + random.normal(scale=0.1, size=200)
    error = x @ model["slopes"] - y
    return Update(
        {"slopes": model["slopes"] - 0.5 * x.T @ error / len(y)},
        weight=len(y),
        metrics={"loss": float(np.mean(error**2))},
    )


if __name__ == "__main__":
    result = simulate("fedavg", sites=3, parameters={"executor": "hello_numpy", "rounds": 10})
    print("slopes:", result.model["slopes"].round(2))
    print("model file:", result.path)
