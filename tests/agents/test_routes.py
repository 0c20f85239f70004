"""Where a TLS name leads, while the API is there and while it is not."""

import asyncio
from uuid import uuid4

import pytest

from prefect_federated.agents import routes
from prefect_federated.agents.addresses import Address
from prefect_federated.agents.routes import Routes
from prefect_federated.errors import ConnectionFailed
from prefect_federated.tasks.labels import ENDPOINT
from tests.agents.network import Federation, free_port, stub_api

JOB = str(uuid4())


def test_a_job_is_found_where_it_was_while_the_api_gives_no_answer(
    heart: Federation, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(routes, "CACHE_S", 0.0)
    kit, port = heart.kit("server-1"), free_port()
    name = kit.job_name(JOB)

    async def steps() -> None:
        found = Routes(kit, Address("127.0.0.1", port))
        try:
            with pytest.raises(ConnectionFailed, match="gives no answer"):
                await found.find(name)
            with stub_api(kit, port) as api:
                api.labels[JOB] = {ENDPOINT: "127.0.0.1:4321"}
                assert await found.find(name) == Address("127.0.0.1", 4321)
                api.is_away = True
                assert await found.find(name) == Address("127.0.0.1", 4321)
                api.is_away, api.labels[JOB] = False, {}
                with pytest.raises(ConnectionFailed, match="has no endpoint now"):
                    await found.find(name)
        finally:
            await found.close()

    asyncio.run(steps())
