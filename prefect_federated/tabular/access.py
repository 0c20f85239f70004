"""Which of a site's rows a job gets, and whether the site's policy gives it any."""

from prefect_federated.datasets import Dataset, load_datasets
from prefect_federated.datasets.policy import PrivacyPolicy
from prefect_federated.datasets.table import near
from prefect_federated.errors import DatasetNotFound
from prefect_federated.executors import Site
from prefect_federated.tabular.question import TabularQuestion, question_in


def allows_raw_rows(site: Site) -> bool:
    """Whether rows of the dataset themselves may leave the site, as support vectors do."""
    return policy_of(site).raw_rows


def policy_of(site: Site) -> PrivacyPolicy:
    """Returns the policy of the dataset that a call asks for."""
    return dataset_of(site, question_in(site.config)).policy


def own_small_cell(site: Site) -> int:
    """Returns the `small_cell` that the site's own datasets.yaml sets; 0 where it sets none."""
    policy = policy_of(site)
    return policy.small_cell if "small_cell" in policy.model_fields_set else 0


def dataset_of(site: Site, question: TabularQuestion) -> Dataset:
    """Returns the dataset that a question names.

    Raises:
        DatasetNotFound: the site has none of that name.
    """
    return load_datasets(site.data).named(question.dataset)


def splits_of(dataset: Dataset, question: TabularQuestion) -> tuple[str, str | None]:
    """Returns the split to train on, and the one to measure on; None: rows are held out."""
    there = dataset.splits
    train = question.train
    if train is None:
        if "train" not in there and len(there) > 1:
            raise DatasetNotFound(
                f"dataset {dataset.name!r} has no split 'train', but {', '.join(there)}. Say "
                "which one to train on with `train_split`."
            )
        train = "train" if "train" in there else there[0]
    test = question.test
    if test is None and "test" in there and train != "test":
        test = "test"
    for name in filter(None, (train, test)):
        if name not in there:
            raise DatasetNotFound(
                f"dataset {dataset.name!r} has no split {name!r}. {near(name, there)}"
            )
    return train, None if test == train else test


def refusal(policy: PrivacyPolicy, rows: int) -> str | None:
    """Returns why a site's policy does not let so many rows be trained on; None if it does."""
    if policy.training is False or (policy.training is None and policy.noise is not None):
        why = "says `training: false`" if policy.training is False else "asks for noise"
        return (
            f"the privacy section of its datasets.yaml {why}, and no model is trained with noise. "
            "Whoever is responsible for the data can set `training: true` there"
        )
    if rows < policy.minimum_rows:
        return (
            f"{rows} rows to train on < minimum {policy.minimum_rows} of the site's policy; leave "
            "the site out with `sites`, or bring more rows"
        )
    return None


def held_out_number(rows: int, share: float) -> int:
    """Returns how many of so many rows are held out: at least one, and never all."""
    return 0 if not share else min(max(1, round(rows * share)), max(rows - 1, 0))
