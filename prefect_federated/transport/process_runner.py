"""Batches of site tasks in worker processes of this machine.

A worker imports the executor once and gets a call's model once, over a pipe, in our wire format;
what each site answers, and says before that, comes back over the pipe at once. A worker that dies
costs the site that it was at; another worker goes on with the rest of its batch.

    python -m prefect_federated.transport.process_runner DESCRIPTOR
"""

import contextlib
import logging
import subprocess
import sys
import threading
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from typing import TYPE_CHECKING

from prefect_federated.errors import FederatedError
from prefect_federated.messages import Message, Tensors
from prefect_federated.transport.batches import (
    Answer,
    Batch,
    BatchLost,
    LocalSites,
    SiteLost,
    Told,
    VirtualSites,
    is_said,
    said,
)
from prefect_federated.transport.signals import SiteNotes
from prefect_federated.wire import Frame, begin, encode

if TYPE_CHECKING:  # generic for type checkers only
    Pipes = Connection[object, object]
else:
    Pipes = Connection

_END_S = 2.0
_TAKEN = b"taken"
"""What a worker says when it has a batch; from then on, its end is the end of a site's work."""

log = logging.getLogger("prefect_federated.simulator")


class ProcessRunner:
    """Runs batches in worker processes, one batch at a time in each.

    Args:
        sites: The virtual sites.
        processes: Worker processes; each starts with its first batch.
    """

    def __init__(self, sites: VirtualSites, processes: int) -> None:
        self.lanes = processes
        self.batches_a_lane: int | None = 4
        self._sites = sites
        self._workers: dict[int, _Worker] = {}
        self._lock = threading.Lock()
        self._is_closed = False

    def run(self, lane: int, batch: Batch, answer: Answer, told: Told) -> None:
        """Runs a batch in the lane's process."""
        worker = self._asked(lane, batch)
        for site in batch.sites:
            while is_said(message := self._heard(lane, worker), told):
                pass
            answer(site, message)

    def _heard(self, lane: int, worker: "_Worker") -> Message:
        try:
            return worker.answer()
        except (EOFError, OSError) as error:
            raise SiteLost(f"the process that ran it {self._end(lane, worker)}") from error

    def _asked(self, lane: int, batch: Batch) -> "_Worker":
        """Returns the lane's worker, which has taken the batch.

        One that has died before that, while it was idle, is no site's fault: another one is asked.
        """
        how = ""
        for _ in range(2):
            with self._lock:
                if self._is_closed:
                    raise BatchLost("the job has ended")
                worker = self._workers.get(lane)
                if worker is None:
                    worker = self._workers[lane] = _Worker(self._sites)
            try:
                worker.ask(batch)
                return worker
            except (EOFError, OSError):
                how = self._end(lane, worker)
                log.info("a worker process %s while it was idle; another one is started", how)
        raise BatchLost(f"no worker process takes its batch: the last {how}")

    def _end(self, lane: int, worker: "_Worker") -> str:
        """Ends a lane's worker; returns how it ended by itself."""
        with self._lock:
            self._workers.pop(lane, None)
        how = worker.end()
        if self._is_closed:
            raise BatchLost("the job has ended")
        return how

    def close(self) -> None:
        """Ends the processes, with what they are at."""
        with self._lock:
            self._is_closed = True
            for worker in self._workers.values():
                worker.process.kill()  # its lane sees the end of the pipe, if it waits for it
        for worker in self._workers.values():
            worker.process.wait()


class _Worker:
    """A worker process, as its lane sees it."""

    def __init__(self, sites: VirtualSites) -> None:
        self._pipe, theirs = Pipe()
        with theirs:
            self.process = subprocess.Popen(
                [sys.executable, "-m", __name__, str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
            )
        self._has: str | None = None  # the task whose model it has; None: not even the sites yet
        self._about = Message({"sites": sites.as_json(), "path": [*sys.path]})

    def ask(self, batch: Batch) -> None:
        """Sends a batch, and the model if it is another one than the last; waits until it is there.

        Raises:
            EOFError, OSError: the worker has ended before it had the batch.
        """
        if self._has is None:
            send(self._pipe, self._about)
        send(self._pipe, batch.message(with_model=self._has != batch.id))
        self._pipe.recv_bytes()
        self._has = batch.id

    def answer(self) -> Message:
        """Waits for what the next site of the batch answers, or says before that."""
        return receive(self._pipe)

    def end(self) -> str:
        """Notes the end of a process whose pipe has ended; returns how it ended."""
        self._pipe.close()
        try:
            status = self.process.wait(_END_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            return "closed its pipe"
        if status < 0:
            return f"was ended by signal {-status} (9 may mean: out of memory)"
        return f"ended with status {status}"


def send(pipe: Pipes, message: Message) -> None:
    """Sends a message: its head, then each tensor's and blob's own memory."""
    encoded = encode(Frame.UPDATE, message)
    pipe.send_bytes(encoded.head)
    for view in encoded.payload:
        if view.nbytes:
            pipe.send_bytes(view)


def receive(pipe: Pipes) -> Message:
    """Waits for a message; its tensors are received into their own memory."""
    incoming = begin(pipe.recv_bytes())
    incoming.allocate()
    while not incoming.is_complete:
        place = incoming.place(incoming.payload_bytes - incoming.received)
        incoming.advance(pipe.recv_bytes_into(place))
    return incoming.message()


def main(descriptor: int) -> None:
    """Runs batches until the pipe ends; imports the executor with the first one."""
    logging.basicConfig(level=logging.WARNING, stream=sys.stderr)
    with Connection(descriptor) as pipe, contextlib.suppress(EOFError, BrokenPipeError):
        about = receive(pipe)
        path = about.header["path"]
        assert isinstance(path, list)
        sys.path[:] = [str(entry) for entry in path]
        sites = VirtualSites.from_json(about.header["sites"])
        local: LocalSites | None = None
        model: Tensors = {}
        turn = threading.Lock()  # a message's parts must stay together

        def tell(site: str, notes: SiteNotes) -> None:
            with turn:
                send(pipe, said(site, notes))

        while True:
            batch = Batch.of(receive(pipe), model)
            model = batch.task.tensors
            pipe.send_bytes(_TAKEN)
            try:
                local = local or LocalSites(sites)
            except FederatedError as error:
                for _ in batch.sites:
                    send(pipe, Message({"id": batch.id, "error": str(error)}))
                continue
            for _, answer in local.answers(batch, tell):
                with turn:
                    send(pipe, answer)


if __name__ == "__main__":
    main(int(sys.argv[1]))
