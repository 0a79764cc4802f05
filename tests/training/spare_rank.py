"""Lightning's second rank without ten seconds of imports: a process that the first rank forks before it does anything.

It waits for the arguments and the environment that Lightning gives ``subprocess.Popen``, and is then that process: of
the same session and process group, with nothing in it but imported modules.
"""

import os
import pickle
import signal
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from types import SimpleNamespace
from typing import Any

from lightning.pytorch.strategies.launchers import subprocess_script


class SpareRank:
    """What Lightning uses of ``subprocess.Popen``."""

    def __init__(self, run: Callable[[list[str]], None]):
        reading, self._writing = os.pipe()
        self.returncode: int | None = None
        self.pid = os.fork()
        if self.pid == 0:
            os.close(self._writing)
            _become(reading, run)
        os.close(reading)

    def launch(self, command: Sequence[str], env: Mapping[str, str], cwd: None = None) -> "SpareRank":
        with open(self._writing, "wb") as pipe:
            pickle.dump((command, dict(env)), pipe)
        return self

    def poll(self) -> int | None:
        if self.returncode is None:
            done, status = os.waitpid(self.pid, os.WNOHANG)
            if done:
                self.returncode = os.waitstatus_to_exitcode(status)
        return self.returncode

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, signal.Signals(number))


def with_spare_rank(run: Callable[[list[str]], None]) -> None:
    """From here on Lightning starts its second rank by this; ``run`` takes what is in ``sys.argv`` after the script."""
    spare = SpareRank(run)
    launcher: Any = subprocess_script
    launcher.subprocess = SimpleNamespace(Popen=spare.launch)


def _become(reading: int, run: Callable[[list[str]], None]) -> None:
    """It never returns: what is after the fork is the first rank's to do."""
    status = 1
    try:
        with open(reading, "rb") as pipe:
            content = pipe.read()
        if not content:  # the first rank has ended without a second
            os._exit(0)
        command, environment = pickle.loads(content)
        os.environ.clear()
        os.environ.update(environment)
        sys.argv = list(command[1:])
        run(sys.argv[1:])
        status = 0
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
