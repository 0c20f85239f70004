"""What a measurement ran on, and the memory of processes by the system's own account."""

import os
import platform
import resource
from importlib.metadata import version
from pathlib import Path


def describe_machine() -> dict[str, object]:
    """Returns processor, cores, memory, versions and the load when the measurement began."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return {
        "processor": names[0] if names else platform.processor(),
        "cores": os.cpu_count(),
        "memory_gb": round(memory / 1e9, 1),
        "python": platform.python_version(),
        "system": platform.platform(),
        "load_1min_before": round(os.getloadavg()[0], 2),
        "versions": {
            name: version(name) for name in ("prefect-federated", "prefect", "grpcio", "numpy")
        },
    }


def own_peak_rss_mb() -> float:
    """Returns the most memory that this process has held, in MB (1e6 bytes)."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6


def peak_rss_mb(pid: int) -> float:
    """Returns the most memory that a process has held so far, in MB; 0 if it has ended."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return 0.0
    for line in status.splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024 / 1e6
    return 0.0
