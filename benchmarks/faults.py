"""The faults: each makes one thing fail, and mends what a person would mend.

What the framework has to mend itself is left as it is.
"""

import os
import random
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeAlias

from benchmarks.besieged import CONTROLLER, SITE, Besieged
from benchmarks.exact_model import PROGRESS, WRONGS
from benchmarks.impostor import GARBAGE, send_garbage
from benchmarks.tcp_proxy import Disturbance, Way
from prefect_federated.agents.sandbox import SERVER
from prefect_federated.kits import load_kit

_WAYS: tuple[Way, ...] = ("up", "down")
_STRIKES_WITHIN_S = 60.0
_LOOK_EVERY_S = 0.02


@dataclass(frozen=True)
class Scene:
    """Where faults happen: a federation and the job that it runs.

    Args:
        federation: The federation.
        job: Id of the controller's flow run.
        notes: The folder in which the job's executor looks for what it is to do wrong.
        model_bytes: Size of the model.
    """

    federation: Besieged
    job: str
    notes: Path
    model_bytes: int


@dataclass(frozen=True)
class Strike:
    """A fault that has happened.

    Args:
        fault: Its name in `FAULTS`.
        site: The site that it hit; None if it hit the server.
        at: When it happened, in seconds since the epoch.
        detail: What exactly happened.
        mended_at: When what a person or a service manager would mend was mended.
    """

    fault: str
    site: str | None
    at: float
    detail: str = ""
    mended_at: float = field(default_factory=time.time)


Fault: TypeAlias = Callable[[Scene, str, random.Random], tuple[float | None, str]]
"""Makes something fail, at the named site or the server; returns when, and what exactly."""


def strike(name: str, scene: Scene, site: str, source: random.Random) -> Strike | None:
    """Has a fault happen; None if there was nothing that could fail."""
    at, detail = FAULTS[name](scene, site, source)
    return None if at is None else Strike(name, None if name in AT_SERVER else site, at, detail)


def _site_process_killed(
    scene: Scene, site: str, source: random.Random
) -> tuple[float | None, str]:
    return scene.federation.kill(site, SITE), ""


def _site_agent_killed(scene: Scene, site: str, source: random.Random) -> tuple[float | None, str]:
    return _agent_killed(scene, site, source.uniform(0.5, 15))


def _server_agent_killed(
    scene: Scene, site: str, source: random.Random
) -> tuple[float | None, str]:
    return _agent_killed(scene, SERVER, source.uniform(0.5, 8))


def _agent_killed(scene: Scene, name: str, pause_s: float) -> tuple[float | None, str]:
    at = scene.federation.kill(name)
    time.sleep(pause_s)
    scene.federation.start(name)
    return at, f"started again after {pause_s:.1f} s"


def _controller_killed(scene: Scene, site: str, source: random.Random) -> tuple[float | None, str]:
    return scene.federation.kill(SERVER, CONTROLLER), ""


def _gateway_killed(scene: Scene, site: str, source: random.Random) -> tuple[float | None, str]:
    return scene.federation.kill(SERVER, "prefect_federated.agents.gateway"), ""


def _api_killed(scene: Scene, site: str, source: random.Random) -> tuple[float | None, str]:
    return scene.federation.kill(SERVER, "prefect_federated.agents.api"), ""


def _disturbed(what: Disturbance) -> Fault:
    def fault(scene: Scene, site: str, source: random.Random) -> tuple[float | None, str]:
        way, after_bytes = source.choice(_WAYS), source.randrange(scene.model_bytes)
        line = scene.federation.lines[site]
        line.disturb(what, way, after_bytes)
        at = line.wait_until_disturbed(_STRIKES_WITHIN_S)
        return at, f"{after_bytes:,} bytes {way} the line"

    return fault


def _line_slow(scene: Scene, site: str, source: random.Random) -> tuple[float | None, str]:
    at, mbit_s, pause_s = time.time(), source.uniform(4, 30), source.uniform(5, 15)
    line = scene.federation.lines[site]
    line.bits_per_s = mbit_s * 1e6
    time.sleep(pause_s)
    line.bits_per_s = None
    return at, f"{mbit_s:.0f} Mbit/s for {pause_s:.0f} s"


def _line_down(scene: Scene, site: str, source: random.Random) -> tuple[float | None, str]:
    at, pause_s = time.time(), source.uniform(2, 25)
    line = scene.federation.lines[site]
    line.take_down()
    time.sleep(pause_s)
    line.bring_up()
    return at, f"for {pause_s:.0f} s"


def _disk_full(scene: Scene, site: str, source: random.Random) -> tuple[float | None, str]:
    """The executor's own file is on a device that is always full (ENOSPC), and no file of the
    site's processes grows any more (EFBIG)."""
    at, pause_s = time.time(), source.uniform(2, 6)
    progress = scene.federation.sandbox.state(site) / "jobs" / scene.job / PROGRESS
    if not progress.parent.is_dir():
        return None, ""
    link = progress.with_suffix(".full")
    link.symlink_to("/dev/full")
    link.replace(progress)
    scene.federation.set_disk_full(site, True)
    time.sleep(pause_s)
    scene.federation.set_disk_full(site, False)
    progress.unlink()
    return at, f"for {pause_s:.0f} s"


def _server_disk_full(scene: Scene, site: str, source: random.Random) -> tuple[float | None, str]:
    """No file of the server's processes grows any more: not the snapshots, not the database."""
    at, pause_s = time.time(), source.uniform(2, 8)
    scene.federation.set_disk_full(SERVER, True)
    time.sleep(pause_s)
    scene.federation.set_disk_full(SERVER, False)
    return at, f"for {pause_s:.0f} s"


def _garbage_update(scene: Scene, site: str, source: random.Random) -> tuple[float | None, str]:
    wrong = source.choice(WRONGS)
    return _do_wrong(scene, site, wrong), wrong


def _garbage_streak(scene: Scene, site: str, source: random.Random) -> tuple[float | None, str]:
    """More failures in a row than a job takes before it leaves a site out."""
    wrongs = [source.choice(WRONGS) for _ in range(4)]
    times = [_do_wrong(scene, site, wrong) for wrong in wrongs]
    return times[-1], f"{len(wrongs)} in a row"


def _do_wrong(scene: Scene, site: str, wrong: str) -> float | None:
    todo = scene.notes / f"{site}.todo"
    part = todo.with_suffix(".part")
    part.write_text(wrong)
    os.replace(part, todo)
    end = time.monotonic() + _STRIKES_WITHIN_S
    while todo.exists():
        if time.monotonic() > end:
            todo.unlink(missing_ok=True)
            return None
        time.sleep(_LOOK_EVERY_S)
    return time.time()


def _garbage_frames(scene: Scene, site: str, source: random.Random) -> tuple[float | None, str]:
    what, at = source.choice(GARBAGE), time.time()
    kit = load_kit(scene.federation.sandbox.kit_folder(site))
    try:
        heard = send_garbage(what, kit, scene.federation.server, scene.job, source)
    except TimeoutError:
        return at, f"{what}; the connection was left open"
    except OSError as error:
        return at, f"{what}; {error}"
    return at, f"{what}; answered with {len(heard)} bytes"


FAULTS: dict[str, Fault] = {
    "site process killed": _site_process_killed,
    "connection cut": _disturbed(Disturbance.CUT),
    "controller killed": _controller_killed,
    "bits flipped": _disturbed(Disturbance.FLIP),
    "garbage update": _garbage_update,
    "garbage frames": _garbage_frames,
    "gateway killed": _gateway_killed,
    "connection slow": _line_slow,
    "disk full at the site": _disk_full,
    "connection frozen": _disturbed(Disturbance.FREEZE),
    "site agent killed": _site_agent_killed,
    "server agent killed": _server_agent_killed,
    "site off-line": _line_down,
    "garbage streak": _garbage_streak,
    "API killed": _api_killed,
    "disk full at the server": _server_disk_full,
}
"""Name -> fault."""

AT_SERVER = frozenset(
    {"controller killed", "gateway killed", "server agent killed", "API killed"}
    | {"disk full at the server"}
)
"""Faults that hit the server."""
