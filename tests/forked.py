"""Python processes that start with torch and transformers imported.

A process that imports them spends four seconds on it, which a test of how a command ends in its own
process can do without. `Forks` starts one process that imports the libraries and runs nothing
with them, so that it stays at one thread and can fork safely. It forks for each program:

    the tests ──program, environment, descriptors──▶ the process that forks
                                                       └─ a parent that waits for the program
                                                            └─ the program, in its own session

A program gets the arguments, environment, folder and descriptors that a new process would get, and
Python's own handlers of signals. A signal that is sent to its `pid` reaches it and nothing else.
What a real process does while it imports libraries can't be tested in this way.
"""

from __future__ import annotations

import gc
import importlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NoReturn, Self

_REPOSITORY = Path(__file__).parent.parent

_MAX_MESSAGE_BYTES = 1 << 20
_NUM_DESCRIPTORS = 4
_DEADLINE_S = 600
# No thread may run where a process forks: the first library would start one for each core, the
# second one in the background.
_LIBRARIES = (
    "torch",
    "transformers.models.mixtral.modeling_mixtral",
    "transformers.integrations.finegrained_fp8",
    "transformers.tokenization_utils_tokenizers",
    "pandas",
    "pyarrow.csv",
    "pyarrow.parquet",
    "rich.table",
    "typer",
)
_ONE_THREAD = {"OMP_NUM_THREADS": "1", "JE_ARROW_MALLOC_CONF": "background_thread:false"}
# Each further heap reserves addresses that it doesn't use, which a limit on memory would count.
_ONE_HEAP = {"MALLOC_ARENA_MAX": "1"}


@dataclass(frozen=True)
class Program:
    """Python code that runs as in `python -c CODE ARGS`."""

    code: str
    args: list[str]
    environment: dict[str, str]
    folder: str


class Forked:
    """A program in its process, with the methods of `subprocess.Popen` that tests need.

    Attributes:
        args: The words after the code.
        pid: Of the process that runs the program.
        returncode: As Popen has it: negative for a signal, None until the process was found ended.
    """

    def __init__(
        self, program: Program, control: socket.socket, stdin: int | None, stdout: int | None
    ) -> None:
        self.args = program.args
        self.returncode: int | None = None
        self._reply, reply = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._stdout, self._stderr = (
            os.fdopen(os.memfd_create(name), "r+b") for name in ("stdout", "stderr")
        )
        with open(os.devnull, "rb") as nothing, reply:
            descriptors = [
                nothing.fileno() if stdin is None else stdin,
                self._stdout.fileno() if stdout is None else stdout,
                self._stderr.fileno(),
                reply.fileno(),
            ]
            socket.send_fds(control, [json.dumps(asdict(program)).encode()], descriptors)
        self._reply.settimeout(_DEADLINE_S)
        self.pid = self._receive()

    def poll(self) -> int | None:
        """Return the exit code, or None while the process runs."""
        return self._wait(0)

    def send_signal(self, number: int) -> None:
        """Send a signal, unless the process was found ended."""
        if self.poll() is None:
            # Its parent doesn't forget it before this object is closed: no other has its number.
            os.kill(self.pid, number)

    def kill(self) -> None:
        """Send SIGKILL, unless the process was found ended."""
        self.send_signal(signal.SIGKILL)

    def communicate(self, timeout: float | None = None) -> tuple[bytes, bytes]:
        """Wait for the end; return what went to stdout, unless it was given, and to stderr."""
        if self._wait(timeout) is None:
            raise subprocess.TimeoutExpired(self.args, timeout or 0)
        self._stdout.seek(0)
        self._stderr.seek(0)
        return self._stdout.read(), self._stderr.read()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()
        self._wait(_DEADLINE_S)
        for each in (self._reply, self._stdout, self._stderr):
            each.close()

    def _wait(self, timeout: float | None) -> int | None:
        if self.returncode is None:
            self._reply.settimeout(timeout)
            try:
                self.returncode = self._receive()
            except (BlockingIOError, TimeoutError):
                return None
        return self.returncode

    def _receive(self) -> int:
        message = self._reply.recv(_MAX_MESSAGE_BYTES)
        assert message, "the process that forks has ended"
        return int(message)


class Forks:
    """The process that forks, from the first program to the end of the block."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        self._control: socket.socket | None = None

    def start(
        self,
        code: str,
        *args: str | Path,
        environment: Mapping[str, str],
        folder: Path = _REPOSITORY,
        stdin: int | None = None,
        stdout: int | None = None,
    ) -> Forked:
        """Start a program.

        Args:
            code: Runs as `__main__`.
            args: The words after it.
            environment: All of it. What libraries read when they are imported has no effect.
            folder: The folder that the program runs in.
            stdin: Descriptor of its input, which is empty if None.
            stdout: Descriptor of its output, which is kept if None.
        """
        program = Program(code, [*map(str, args)], dict(environment), str(folder))
        return Forked(program, self._control or self._begin(), stdin, stdout)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._control and self._process:
            self._control.close()
            self._process.communicate()

    def _begin(self) -> socket.socket:
        self._control, control = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with control:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "tests.forked", str(control.fileno())],
                # Python treats pipes and files differently, and keeps what it made of these two.
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                cwd=_REPOSITORY,
                env={**os.environ, **_ONE_THREAD, **_ONE_HEAP},
                pass_fds=[control.fileno()],
                start_new_session=True,
            )
        return self._control


def main() -> None:
    """Fork for each program that arrives, and run it in its process."""
    with socket.socket(fileno=int(sys.argv[1])) as control:
        _import_libraries()
        assert (threading.active_count(), len(os.listdir("/proc/self/task"))) == (1, 1)
        program = _receive_program(control)
    sys.argv = ["-c", *program.args]
    os.environ.clear()
    os.environ.update(program.environment)
    os.chdir(program.folder)
    # At the top level, so that the process ends as any other does: at its last line, by an error or
    # by a signal, with all that Python does there.
    exec(compile(program.code, "<string>", "exec"), {"__name__": "__main__"})


def _import_libraries() -> None:
    """Import what route-trace needs, except moetool's own modules, which programs may change."""
    from moetool.process.quiet import silence_process

    # As a command does before it imports them.
    silence_process()
    for name in _LIBRARIES:
        importlib.import_module(name)
    gc.collect()
    gc.freeze()


def _receive_program(control: socket.socket) -> Program:
    """Return the program that arrived, in the process that is to run it."""
    # The system forgets those that waited for a program once they have ended.
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    while True:
        message, descriptors, _, _ = socket.recv_fds(control, _MAX_MESSAGE_BYTES, _NUM_DESCRIPTORS)
        if not message:
            os._exit(0)
        if os.fork() == 0:
            break
        for each in descriptors:
            os.close(each)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    *streams, reply = descriptors
    pid = os.fork()
    if pid:
        _attend(pid, reply, streams)
    os.setsid()
    for number, each in enumerate(streams):
        os.dup2(each, number)
    for each in descriptors:
        os.close(each)
    return Program(**json.loads(message))


def _attend(pid: int, reply: int, streams: list[int]) -> NoReturn:
    """Report a process and its end, and keep its number reserved until nobody asks for it."""
    # A pipe ends when nobody else holds it.
    for each in streams:
        os.close(each)
    with socket.socket(fileno=reply) as peer:
        peer.send(str(pid).encode())
        ended = os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
        assert ended is not None
        is_signal = ended.si_code != os.CLD_EXITED
        peer.send(str(-ended.si_status if is_signal else ended.si_status).encode())
        peer.recv(1)
    os.waitpid(pid, 0)
    os._exit(0)


if __name__ == "__main__":
    main()
