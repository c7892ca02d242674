"""The fork server of an agent: its process, and the sockets between the agent, the fork server and the ranks."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from multiprocessing import AuthenticationError
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from drivetrain_workers.agent.rank_supervisor import Link
from drivetrain_workers.protocol.messages import Endpoint, Message, receive, send

# On CPUs the memory of activations would be returned to the kernel and faulted in again in every step: 10% of it.
KEEP_FREED_MEMORY = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": str(1 << 62)}  # glibc's mallopt(3)


class ConnectionLink:
    """A `Link` over a socket."""

    def __init__(self, connection: Connection[Any, Any]) -> None:
        self._connection = connection

    def send(self, message: Message) -> None:
        """Send one message. Raises OSError when the other side is gone."""
        send(self._connection, message)


class ForkServerProcess:
    """Starts the fork server and receives messages from it and from the ranks that it forks.

    Args:
        threads: CPU threads per rank.
        gpus: whether ranks use GPUs; otherwise the node's GPUs are hidden from them.
        log: file for the output of the process.
        on_message: called for each message, from one thread per connection.
    """

    def __init__(self, threads: int, gpus: bool, log: Path, on_message: Callable[[Message, Link], None]) -> None:
        self.endpoint = Endpoint.create()
        self._listener, self._on_message = self.endpoint.listen(), on_message
        self._process = self._start(threads, gpus, log)
        threading.Thread(target=self._accept, name="fork-server", daemon=True).start()

    @property
    def pid(self) -> int:
        """Process id."""
        return self._process.pid

    @property
    def is_alive(self) -> bool:
        """Whether the process is running."""
        return self._process.poll() is None

    def kill(self) -> None:
        """End the process; the kernel ends its ranks with it."""
        self._process.kill()

    def _start(self, threads: int, gpus: bool, log: Path) -> subprocess.Popen[bytes]:
        environment = {
            **os.environ,
            "OMP_NUM_THREADS": str(threads),
            "DRIVETRAIN_AGENT": self.endpoint.name,
            "DRIVETRAIN_AGENT_KEY": self.endpoint.key,
        }
        if not gpus:
            environment = {**KEEP_FREED_MEMORY, **environment, "DS_ACCELERATOR": "cpu", "CUDA_VISIBLE_DEVICES": ""}
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("ab") as output:
            return subprocess.Popen(
                [sys.executable, "-m", "drivetrain_workers.agent.fork_server"],
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
            )

    def _accept(self) -> None:
        while True:
            try:
                connection = self._listener.accept()
            except (AuthenticationError, EOFError, ConnectionError):
                continue  # the connection failed the authentication
            threading.Thread(target=self._listen, args=(connection,), daemon=True).start()

    def _listen(self, connection: Connection[Any, Any]) -> None:
        link = ConnectionLink(connection)
        with suppress(EOFError, OSError):  # the fork server reports the exit
            while True:
                self._on_message(receive(connection), link)
