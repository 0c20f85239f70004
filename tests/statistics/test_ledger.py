"""The ledger survives jobs, kills and other processes, and never begins anew by itself."""

import os
import signal
import stat
import subprocess
import sys
import threading
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import pytest

from prefect_federated.datasets.policy import Noise, PrivacyPolicy
from prefect_federated.errors import LedgerDamaged
from prefect_federated.statistics.ledger import FOLDER, Ledger, Spent
from tests.statistics.asking import SmallSite
from tests.statistics.test_attacks import numbers_in, patients

NOISE = Noise(epsilon=0.4, budget_epsilon=1.0)
POLICY = PrivacyPolicy(noise=NOISE, bounds={"age": (0, 110), "chol": (0, 700)})


def spend(ledger: Ledger, epsilon: float = 0.1, dataset: str = "heart") -> None:
    with ledger.account(dataset) as account:
        account.spent.append(Spent(at=datetime.now(UTC), job="a", epsilon=epsilon, delta=0))


def spent(ledger: Ledger, dataset: str = "heart") -> float:
    with ledger.account(dataset) as account:
        return account.used(NOISE, datetime.now(UTC))[0]


def withheld_of(site: SmallSite) -> str:
    answer = site.ask({"age": range(0, 111, 10)}, group_by="sex")
    told = numbers_in(answer)
    assert not told, f"numbers left: {told}"
    return answer.withheld[0].reason


def test_the_ledger_is_for_its_owner_only(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / FOLDER)
    spend(ledger)
    assert stat.S_IMODE(ledger.folder.stat().st_mode) == 0o700
    assert {stat.S_IMODE(file.stat().st_mode) for file in ledger.folder.iterdir()} == {0o600}


def test_datasets_have_budgets_of_their_own(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / FOLDER)
    spend(ledger, 0.3, "heart")
    spend(ledger, 0.2, "../heart")
    assert (spent(ledger, "heart"), spent(ledger, "../heart")) == (0.3, 0.2)
    assert {file.parent for file in tmp_path.rglob("*.json")} == {ledger.folder}


def test_a_block_that_raises_changes_nothing(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / FOLDER)
    spend(ledger)

    def fail() -> None:
        with ledger.account("heart") as account:
            account.spent.clear()
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert spent(ledger) == pytest.approx(0.1)


def killed_at(place: int, folder: Path) -> int:
    """Spends in a process that is killed at some call to the system; returns how it ended."""
    child = os.fork()
    if child:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    calls = 0

    def counted(function: Callable[..., object]) -> Callable[..., object]:
        def call(*args: object) -> object:
            nonlocal calls
            calls += 1
            if calls == place:
                os.kill(os.getpid(), signal.SIGKILL)
            return function(*args)

        return call

    for name in ("fsync", "open", "close"):
        setattr(os, name, counted(getattr(os, name)))
    setattr(Path, "replace", counted(Path.replace))  # noqa: B010
    spend(Ledger(folder), 0.2)
    os._exit(0)


def test_a_kill_at_any_moment_leaves_it_as_before_or_as_after(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / FOLDER)
    spend(ledger)
    seen = set()
    for place in range(1, 9):
        folder = copy_of(ledger, tmp_path / str(place))
        ended = killed_at(place, folder)
        assert ended in (0, -signal.SIGKILL)
        left = Ledger(folder)
        epsilon = round(spent(left), 6)
        assert epsilon in ((0.3,) if ended == 0 else (0.1, 0.3))
        seen.add((ended == 0, epsilon))
        spend(left)
        assert round(spent(left), 6) == round(epsilon + 0.1, 6)
    assert seen == {(False, 0.1), (False, 0.3), (True, 0.3)}


def copy_of(ledger: Ledger, folder: Path) -> Path:
    copy = folder / FOLDER
    copy.mkdir(parents=True)
    for file in ledger.folder.iterdir():
        (copy / file.name).write_bytes(file.read_bytes())
    return copy


_SPENDING = """
import sys
from pathlib import Path
from datetime import datetime, UTC
from prefect_federated.statistics.ledger import Ledger, Spent
for _ in range(25):
    with Ledger(Path(sys.argv[1])).account("heart") as account:
        account.spent.append(Spent(at=datetime.now(UTC), job="b", epsilon=1, delta=0))
"""


def test_two_processes_and_two_threads_at_once_lose_nothing(tmp_path: Path) -> None:
    folder = tmp_path / FOLDER
    command = [sys.executable, "-c", _SPENDING, str(folder)]
    processes = [subprocess.Popen(command) for _ in range(2)]

    def many() -> None:
        for _ in range(25):
            spend(Ledger(folder), 1.0)

    threads = [threading.Thread(target=many) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [process.wait(timeout=60) for process in processes] == [0, 0]
    assert spent(Ledger(folder)) == 100


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (lambda file: file.write_bytes(file.read_bytes()[:-9]), "not what was written"),
        (lambda file: file.write_bytes(b""), "not what was written"),
        (lambda file: file.write_bytes(file.read_bytes().replace(b"0.4", b"0.0")), "not what was"),
        (lambda file: file.unlink(), "it is gone"),
    ],
    ids=["cut", "empty", "edited", "removed"],
)
@pytest.mark.parametrize("which", ["heart-*.json", "index.json"])
def test_a_damaged_ledger_releases_nothing_and_says_what_to_do(
    tmp_path: Path, damage: object, says: str, which: str
) -> None:
    site = SmallSite(tmp_path, patients(), POLICY)
    assert numbers_in(site.ask())
    [file] = (tmp_path / FOLDER).glob(which)
    before = file.read_bytes()
    damage(file)  # type: ignore[operator]
    if file.exists() and file.read_bytes() == before:
        return  # the index has no such number to edit
    reason = withheld_of(site)
    assert says in reason
    assert "Put a backup of the folder back" in reason
    assert str(tmp_path) not in reason


def test_a_ledger_of_another_dataset_is_damage(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / FOLDER)
    spend(ledger, dataset="heart")
    spend(ledger, dataset="lung")
    [heart], [lung] = ledger.folder.glob("heart-*"), ledger.folder.glob("lung-*")
    lung.replace(heart)
    with pytest.raises(LedgerDamaged, match="it is that of dataset 'lung'"):
        spend(ledger, dataset="heart")


def test_a_ledger_that_cannot_be_written_releases_nothing(tmp_path: Path) -> None:
    (tmp_path / FOLDER).write_text("a file where the folder should be")
    reason = withheld_of(SmallSite(tmp_path, patients()))
    assert "cannot write its ledger" in reason
    assert str(tmp_path) not in reason


def test_a_disk_that_is_full_releases_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    site = SmallSite(tmp_path, patients(), POLICY)

    def full(file: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    assert "No space left on device" in withheld_of(site)


def test_the_budget_holds_across_jobs_and_is_refused_beyond(tmp_path: Path) -> None:
    site = SmallSite(tmp_path, patients(3000), POLICY)
    for job, bins in enumerate((2, 3, 4)):
        site.night = job
        answer = site.ask({"age": range(0, 111, 110 // bins)})
        summary = answer.splits["train"].columns["age"].summary
        assert (summary.count is None) == (job == 2)
    assert summary.withheld[0].reason == "budget: 0.8 of 1 epsilon spent, this job asks for 0.4"
    with Ledger(tmp_path / FOLDER).account("heart") as account:
        assert [entry.job for entry in account.spent] == ["job 0", "job 1"]


def test_jobs_at_the_same_time_do_not_spend_the_same_budget(tmp_path: Path) -> None:
    frame = patients(3000)
    told: list[bool] = []

    def ask(place: int) -> None:
        site = SmallSite(tmp_path, frame, POLICY)
        told.append(site.column("age", [0, 40 + place, 110]).count is not None)

    threads = [threading.Thread(target=ask, args=(place,)) for place in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(told) == [False] * 4 + [True] * 2


def test_a_budget_comes_back_after_its_period_only_if_the_site_says_so(tmp_path: Path) -> None:
    noise = NOISE.model_copy(update={"period_days": 30})
    site = SmallSite(tmp_path, patients(3000), POLICY.model_copy(update={"noise": noise}))
    told = []
    for night, low in ((0, 0), (1, 1), (29, 2), (31, 3)):
        site.night = night
        told.append(site.column("age", [low, 50, 110]).count is not None)
    assert told == [True, True, False, True]


def test_delta_has_a_budget_too(tmp_path: Path) -> None:
    noise = Noise(mechanism="gaussian", epsilon=0.1, delta=1e-5, budget_delta=1e-5)
    policy = POLICY.model_copy(update={"noise": noise})
    site = SmallSite(tmp_path, patients(3000).drop(columns="sex"), policy)
    assert site.column("age", [0, 50, 110]).count is not None
    refused = site.column("age", [0, 60, 110])
    assert (
        refused.withheld[0].reason == "budget: 1e-05 of 1e-05 delta spent, this job asks for 1e-05"
    )


def test_many_questions_do_not_make_the_ledger_grow_without_end(tmp_path: Path) -> None:
    site = SmallSite(tmp_path, patients(3000)[["age"]])
    sizes = []
    for place in range(160):
        site.column("age", [0, 40 + place / 8, 110])
        sizes.append(sum(file.stat().st_size for file in (tmp_path / FOLDER).iterdir()))
    assert sizes[159] - sizes[110] < sizes[59] - sizes[10]
    assert sizes[159] < 200_000
