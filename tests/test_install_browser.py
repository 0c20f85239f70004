"""The step of `make test` that installs a browser: silent where there is one, else clear."""

import shutil
import subprocess
from pathlib import Path

SCRIPT = Path(__file__).parent / "install_browser.sh"


def ran(folder: Path, *commands: str) -> subprocess.CompletedProcess[str]:
    """Runs the step where these commands are on the PATH, and no others."""
    for name in ("bash", *commands):
        found = shutil.which(name)
        assert found is not None, name
        (folder / name).symlink_to(found)
    return subprocess.run(
        ["/bin/bash", SCRIPT], env={"PATH": str(folder)}, capture_output=True, text=True
    )


def test_it_does_nothing_where_there_is_a_chromium(tmp_path: Path) -> None:
    done = ran(tmp_path, "chromium")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_it_says_what_to_do_where_it_cannot_install_one(tmp_path: Path) -> None:
    done = ran(tmp_path, "id")
    assert done.returncode == 1
    assert "as root: apt-get install chromium" in done.stderr


def test_make_test_begins_with_it() -> None:
    lines = (SCRIPT.parents[1] / "Makefile").read_text().splitlines()
    assert "test: setup browser" in lines
    assert lines[lines.index("browser:") + 1] == "\ttests/install_browser.sh"
