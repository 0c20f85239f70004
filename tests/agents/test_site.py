"""What a site refuses before it connects."""

import asyncio
from pathlib import Path

import pytest

from prefect_federated.agents.site import serve
from prefect_federated.errors import ConfigurationError
from tests.agents.network import Federation


@pytest.mark.parametrize("label", ["region", "=eu", "region="])
def test_a_label_that_is_no_pair_is_refused(kits: Federation, label: str, tmp_path: Path) -> None:
    kit = kits.kit("site-1")
    with pytest.raises(ConfigurationError, match=r"is not name=value; write it like region=eu"):
        asyncio.run(serve(kit.folder, state=tmp_path, labels=["gpu=1", label]))
