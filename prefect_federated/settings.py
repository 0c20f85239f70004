"""What an operator sets by environment variables `PREFECT_FEDERATED_...`, read where it is used."""

from pathlib import Path

from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict

from prefect_federated.wire import DEFAULT_LIMITS, Limits


class Settings(BaseSettings):
    """The settings of one process; the agents set them for the processes that they start."""

    model_config = SettingsConfigDict(env_prefix="PREFECT_FEDERATED_")

    kit: Path | None = Field(default=None, description="Startup kit of this process.")
    data: Path | None = Field(default=None, description="A site's folder of its own data.")
    state: Path | None = Field(default=None, description="A site's folder for jobs' state.")
    labels: dict[str, str] = Field(
        default={},
        description="What a site says of itself, by which jobs choose sites: a JSON object such as "
        '{"region": "eu"}.',
    )
    endpoint_host: str = Field(
        default="127.0.0.1",
        description="Address where job endpoints listen; the gateway must reach it.",
    )
    tensors_on_disk: Path | None = Field(
        default=None,
        description="Folder on a local disk for tensors of 1 MiB and more, for models larger than "
        "memory; they are in memory if empty. `memory` reads it.",
    )
    tensorboard: Path | None = Field(
        default=None,
        description="Folder for TensorBoard's event files, a folder a job in it; none are written "
        "if empty. Needs prefect-federated[tensorboard].",
    )
    max_message_bytes: int = Field(
        default=DEFAULT_LIMITS.message_bytes,
        gt=0,
        description="Payload of one message at most, in bytes.",
    )

    @property
    def limits(self) -> Limits:
        """What a decoder accepts at most."""
        return Limits(message_bytes=self.max_message_bytes)
