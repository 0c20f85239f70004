"""Batches of a call's site tasks: what they are, and how a process runs one and hands it back.

What goes to another process and comes back are messages in our wire format: JSON and the tensors'
own memory. A runner (`Runner`) runs batches here, in processes of its own, or anywhere.
"""

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Protocol, TypeAlias, cast

from prefect_federated.errors import FederatedError, JobEnded, ProtocolError
from prefect_federated.executors import (
    LoadedExecutor,
    ReceivedTask,
    Site,
    end_sites,
    load_executor,
    run_task,
    site_seed,
)
from prefect_federated.messages import JsonValue, Message, Tensors, Update
from prefect_federated.transport.notepad import Courier, Notepad
from prefect_federated.transport.notes import as_body, notes_of
from prefect_federated.transport.signals import SiteNotes
from prefect_federated.transport.site_filters import SiteFilters
from prefect_federated.transport.updates import failure_of, message_of
from prefect_federated.wire import Frame, begin, encode, specs_of

_LENGTH_BYTES = 8

Answer: TypeAlias = Callable[[str, Message], None]
"""Takes what a site answers: its name, and its update or failure as a message."""
Told: TypeAlias = Callable[[str, SiteNotes], None]
"""Takes what a site says while it works: its name, and its notes."""


@dataclass(frozen=True)
class VirtualSites:
    """What all virtual sites of a job have in common, so that any process can make each of them.

    Args:
        executor: What they run, by its import path.
        data: Folder with one sub-folder of data a site.
        state: Folder with one sub-folder a site for what it keeps during the job.
        config: The job's settings for executors.
        seed: The job's seed.
        filters: The job's filters, as JSON.
    """

    executor: str
    data: Path
    state: Path
    config: dict[str, JsonValue] = field(default_factory=dict)
    seed: int = 0
    filters: list[JsonValue] = field(default_factory=list)

    def site(self, name: str) -> Site:
        """Returns one site; its folder for state is made when it is not there yet."""
        state = self.state / name
        state.mkdir(parents=True, exist_ok=True)
        return Site(
            name=name,
            data=self.data / name,
            state=state,
            config=self.config,
            seed=site_seed(self.seed, name),
            log=logging.getLogger(f"prefect_federated.site.{name}"),
        )

    def as_json(self) -> dict[str, JsonValue]:
        """Returns the same as JSON, for another process."""
        return {
            "executor": self.executor,
            "data": str(self.data.absolute()),
            "state": str(self.state.absolute()),
            "config": self.config,
            "seed": self.seed,
            "filters": self.filters,
        }

    @staticmethod
    def from_json(value: JsonValue) -> "VirtualSites":
        """Returns what `as_json` was made of."""
        known = cast(dict[str, JsonValue], value)
        return VirtualSites(
            executor=str(known["executor"]),
            data=Path(str(known["data"])),
            state=Path(str(known["state"])),
            config=cast(dict[str, JsonValue], known["config"]),
            seed=cast(int, known["seed"]),
            filters=cast(list[JsonValue], known["filters"]),
        )


@dataclass(frozen=True)
class Batch:
    """One site task, and the virtual sites that one process does it for, one after the other."""

    task: Message
    sites: tuple[str, ...]

    @property
    def id(self) -> str:
        """The site task's id."""
        return str(self.task.header["id"])

    def message(self, with_model: bool = True) -> Message:
        """Returns the batch as a message; without the model for a process that has it already."""
        header: dict[str, JsonValue] = {
            **self.task.header, "batch": [*self.sites], "with_model": with_model,
        }  # fmt: skip
        if with_model:
            return Message(header, self.task.tensors, self.task.blobs)
        return Message(header)

    @staticmethod
    def of(message: Message, model: Tensors | None = None) -> "Batch":
        """Returns the batch that a message carries; `model` if it carries none itself."""
        sites = cast(Sequence[str], message.header["batch"])
        tensors = message.tensors if message.header["with_model"] else model
        return Batch(Message(message.header, tensors or {}, message.blobs), tuple(sites))


class SiteLost(FederatedError):
    """The process that ran a batch is gone; the site that it was at is to blame, not the others."""


class BatchLost(FederatedError):
    """A batch is gone with the machine that ran it; all its sites that had not answered failed."""


class Runner(Protocol):
    """Runs batches of site tasks, some at the same time.

    Its `lanes` are threads of the endpoint, each of which runs one batch after the other.
    """

    @property
    def lanes(self) -> int:
        """Batches that run at the same time."""
        ...

    @property
    def batches_a_lane(self) -> int | None:
        """Into how many batches a lane's share of a call is divided; None: a batch is one site."""
        ...

    def run(self, lane: int, batch: Batch, answer: Answer, told: Told) -> None:
        """Runs a batch and gives `answer` what each site answers, in the batch's order.

        What a site says while it works goes to `told`, from any thread, before it answers.

        Raises:
            SiteLost: the process ended; the first site without an answer was its last.
            BatchLost: nobody will answer for the rest of the batch.
        """
        ...

    def close(self) -> None:
        """Ends what runs; nobody waits for it any more."""
        ...


class LocalSites:
    """Runs site tasks of virtual sites in this process.

    Args:
        sites: What the sites have in common.
        executor: What they run; imported by its path if None.
        is_live: Whether what they say is told while they work, or only when they have done.

    Raises:
        ExecutorNotFound: the executor does not import here.
    """

    def __init__(
        self, sites: VirtualSites, executor: LoadedExecutor | None = None, is_live: bool = True
    ) -> None:
        self.sites = sites
        self._courier = Courier() if is_live else None
        self.executor = executor or load_executor(sites.executor)
        self._filters = SiteFilters(sites.filters)

    def answers(
        self, batch: Batch, told: Told = lambda site, notes: None
    ) -> Iterator[tuple[str, Message]]:
        """Runs the task at each of a batch's sites; yields their names and what they answer.

        Args:
            batch: The batch.
            told: Takes what the sites say meanwhile, from any thread.
        """
        for name in batch.sites:
            yield name, self._answer(name, batch.task, told)

    def close(self) -> None:
        """Ends what the sites have left to the end, and the thread that tells what they say."""
        end_sites(self.sites.state)
        if self._courier is not None:
            self._courier.close()

    def _answer(self, name: str, task: Message, told: Told) -> Message:
        def deliver(notes: SiteNotes) -> bool:
            told(name, notes)
            return True

        try:
            site = self.sites.site(name)
            received, visit = self._filters.entering(site, task)
            kept = KeptAnswer()
            pad = Notepad(received.id, self._courier, deliver)
            try:
                run_task(self.executor, site, kept, replace(received, stream=pad))
            finally:
                for last in pad.close():
                    deliver(last)
            if "error" in kept.message.header:
                return kept.message
            return self._filters.leaving(kept.message, visit)
        except (OSError, FederatedError) as error:
            return failure_of(str(task.header["id"]), error)


class ThreadRunner:
    """Runs site tasks on the endpoint's own threads; tensors pass by reference.

    Args:
        local: The virtual sites.
        threads: Site tasks that run at the same time.
    """

    def __init__(self, local: LocalSites, threads: int) -> None:
        self.lanes = threads
        self.batches_a_lane: int | None = None
        self._local = local

    def run(self, lane: int, batch: Batch, answer: Answer, told: Told) -> None:
        """Runs the batch's site tasks here."""
        for site, message in self._local.answers(batch, told):
            answer(site, message)

    def close(self) -> None:
        """Lets nobody speak any more; threads end by themselves."""
        self._local.close()


class KeptAnswer:
    """A link that keeps the answer to one site task."""

    message = Message({"error": "it gave no answer"})

    def attach(self, kinds: Sequence[str]) -> None:
        """Does nothing: who runs a batch has introduced its sites."""

    def receive(self) -> ReceivedTask:
        """Raises `JobEnded`: there is one task only."""
        raise JobEnded("over", "this site's tasks come one by one")

    def reply(self, task: ReceivedTask, update: Update) -> None:
        """Keeps an update; a failure instead, if it does not travel."""
        try:
            message = message_of(task.id, update)
            specs_of(message.tensors)  # raises where a dtype does not travel
            self.message = message
        except ProtocolError as error:
            self.fail(task, error)

    def fail(self, task: ReceivedTask, error: BaseException) -> None:
        """Keeps a failure."""
        self.message = failure_of(task.id, error)


def said(site: str, notes: SiteNotes) -> Message:
    """Returns what a site says while it works as a message, which is no answer."""
    return Message({"said_by": site, "notes": as_body(notes)})


def is_said(message: Message, told: Told) -> bool:
    """Tells what a site says, if that is what the message is; False if it is an answer.

    Raises:
        ProtocolError: it is neither.
    """
    site, body = message.header.get("said_by"), message.header.get("notes")
    if not (isinstance(site, str) and isinstance(body, dict)):
        return False
    told(site, notes_of(body))
    return True


def packed(messages: Sequence[Message]) -> bytes:
    """Returns messages as bytes, each: length of its head, head, tensors and blobs."""
    parts: list[bytes | memoryview] = []
    for message in messages:
        encoded = encode(Frame.UPDATE, message)
        parts += [len(encoded.head).to_bytes(_LENGTH_BYTES, "big"), encoded.head, *encoded.payload]
    return b"".join(parts)


def unpacked(content: bytes) -> Iterator[Message]:
    """Yields the messages that `packed` was given.

    Raises:
        ProtocolError: these bytes are not such messages.
    """
    rest = memoryview(content)
    while rest.nbytes:
        length = int.from_bytes(rest[:_LENGTH_BYTES], "big")
        head, rest = rest[_LENGTH_BYTES : _LENGTH_BYTES + length], rest[_LENGTH_BYTES + length :]
        incoming = begin(bytes(head))
        if incoming.payload_bytes > rest.nbytes:
            raise ProtocolError(f"a batch's bytes end in the middle of a message ({len(content)}).")
        incoming.allocate()
        while not incoming.is_complete:
            place = incoming.place(incoming.payload_bytes - incoming.received)
            place[:], rest = rest[: place.nbytes], rest[place.nbytes :]
            incoming.advance(place.nbytes)
        yield incoming.message()


def run_packed(request: bytes) -> bytes:
    """Runs a batch as one process is given it by another, and returns the sites' answers.

    What a site has said while it worked stands before its answer.

    Args:
        request: `packed` sites' description (header "sites") and batch.

    Raises:
        ExecutorNotFound: the executor does not import here.
    """
    about, batch = unpacked(request)
    local = LocalSites(VirtualSites.from_json(about.header["sites"]), is_live=False)
    messages: list[Message] = []
    for _, answer in local.answers(
        Batch.of(batch), lambda site, notes: messages.append(said(site, notes))
    ):
        messages.append(answer)
    return packed(messages)
