"""A virtual environment for each requirements file."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from benchmarks.peers.process import PeerError, last_line

FOLDER = Path(__file__).parent


def interpreter(requirements: str | None, work: Path) -> Path:
    """Return the python of an environment, made if need be; None is this process's own.

    Raises:
        PeerError: it cannot be installed.
    """
    if requirements is None:
        return Path(sys.executable)
    wanted = (FOLDER / f"{requirements}.txt").read_text("utf-8")
    home = work / "peers" / requirements
    python, installed = home / "venv" / "bin" / "python", home / "installed.txt"
    if not installed.exists() or installed.read_text("utf-8") != wanted:
        home.mkdir(parents=True, exist_ok=True)
        log = home / "install.log"
        with log.open("w") as file:
            for command in (
                [sys.executable, "-m", "venv", str(home / "venv")],
                [str(python), "-m", "pip", "install", "-r", str(FOLDER / f"{requirements}.txt")],
            ):
                if subprocess.run(command, stdout=file, stderr=subprocess.STDOUT).returncode:
                    raise PeerError(f"{requirements} does not install: {last_line(log)}")
        installed.write_text(wanted, "utf-8")
    return python
