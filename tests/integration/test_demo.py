"""What `make demo` runs, in a folder of the test's own and with fewer rounds."""

import subprocess
import sys
from pathlib import Path

import psutil

DEMO = Path(__file__).resolve().parents[2] / "examples" / "heart" / "demo.py"


def test_the_demo_trains_compares_and_stops_what_it_started(tmp_path: Path) -> None:
    folder = tmp_path / "demo"
    command = [sys.executable, str(DEMO), "--folder", str(folder), "--rounds", "3"]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=240)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    for words in ("4/4", "Cleveland alone", "pooled", "federated", "Prefect UI"):
        assert words in ended.stdout, ended.stdout
    assert list(folder.rglob("model.safetensors"))
    left = [p for p in psutil.process_iter(["cmdline"]) if str(folder) in str(p.info["cmdline"])]
    assert not left
