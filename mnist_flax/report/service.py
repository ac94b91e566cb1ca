"""Starts W&B and its service process, passes on what W&B reports, and ends the process."""

import contextlib
import os
import re
import sys
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import psutil

from mnist_flax.runtime.background import IMPORTING

_INIT_SECONDS = 30  # how long to wait for the server; then the run is kept offline


def start(mode: str, settings: dict[str, Any], say: Callable[[str], None]) -> Any:
    """Starts a W&B run, offline if it cannot be online.

    Args:
      mode: 'auto', 'online' or 'offline'.
      settings: the arguments of `wandb.init`.
      say: prints a line.

    Raises:
      Exception: whatever W&B raises if it cannot start offline either.
    """
    with IMPORTING:
        import wandb

    variables = [name for name in os.environ if name.startswith("WANDB_")]
    try:
        return _init(wandb, mode, settings, say)
    except Exception as error:  # W&B raises many types of errors for invalid settings
        is_setting = not isinstance(error, wandb.errors.CommError)
        is_setting |= isinstance(error, wandb.errors.AuthenticationError)
        if mode == "offline" and not (is_setting and variables):
            raise  # it would fail again
        what = "it cannot start with these settings" if is_setting else "no connection"
        reason = one_line(str(error)) or type(error).__name__
        say(f"W&B: {what} ({reason}), so the run is kept offline")
        give_up()  # otherwise the run's name would still be taken
        with _without(variables if is_setting else ()):
            return _init(wandb, "offline", settings, say)


@contextlib.contextmanager
def _without(variables: Iterable[str]) -> Iterator[None]:
    """Hides environment variables, and restores them for whatever else runs in this process."""
    hidden = {name: os.environ.pop(name) for name in variables if name in os.environ}
    try:
        yield
    finally:
        for name, value in hidden.items():
            os.environ.setdefault(name, value)  # W&B may have set its own WANDB_SERVICE


class _Warnings:
    """Prints the warnings of W&B while it starts, each as one line with what W&B was doing."""

    def __init__(self, say: Callable[[str], None]):
        self._say = say
        self._doing = ""

    def info(self, message: str) -> None:
        """Notes what W&B says it is doing."""
        self._doing = f"{one_line(message)}: "

    def warning(self, message: str) -> None:
        """Prints a warning."""
        self._say(f"W&B: {self._doing}{one_line(message)}")

    error = warning


def _init(wandb: Any, mode: str, settings: dict[str, Any], say: Callable[[str], None]) -> Any:
    """Starts a W&B run alongside any other; without a login, 'online' and 'auto' mean offline."""
    if mode == "auto":
        mode = os.environ.get("WANDB_MODE", "") or "auto"
    known = {} if mode == "auto" else {"mode": mode}
    quiet = wandb.Settings(silent=True, console="off", init_timeout=_INIT_SECONDS, **known)
    wandb.termsetup(quiet, _Warnings(say))
    wandb.setup(quiet)
    wandb.termsetup(quiet, _Warnings(say))  # `setup` has restored W&B's own logger
    if token := os.environ.get("WANDB_IDENTITY_TOKEN_FILE"):
        open(token).close()  # an unreadable file must raise here: it would crash W&B's service
    if mode in ("auto", "online"):
        other = wandb.run  # while a run is active, `login` has no effect
        is_online = not other.offline if other else wandb.login(prompt=False, verify=False)
        if not is_online and mode == "online":
            reason = "the active run is offline" if other else "not logged in (wandb login)"
            say(f"W&B: {reason}, so the run is kept offline")
        mode = "online" if is_online else "offline"
    wandb.termsetup(quiet, None)  # hides its messages about the run itself
    # A run that is already active in this process, such as a notebook's own, continues.
    return wandb.init(**settings, mode=mode, settings=quiet, reinit="create_new")


def give_up() -> None:
    """Ends W&B's service process at once, unless another run in this process needs it."""
    if not _is_shared():
        for service in services():
            with contextlib.suppress(psutil.Error):
                service.kill()
    leave()


def leave() -> None:
    """Makes W&B forget our settings and its exit hooks, unless another run is using it.

    The next run in this process, such as a notebook's own, finds W&B as if ours had never existed.
    """
    # If W&B finds its service gone, it asks Python to exit with the service's status. The module
    # is missing if importing it failed.
    if not _is_shared():
        with contextlib.suppress(Exception, SystemExit):
            sys.modules["wandb"].teardown()


def _is_shared() -> bool:
    """Whether a run that is not ours, such as a notebook's own, is active in this process."""
    return getattr(sys.modules.get("wandb"), "run", None) is not None


def services() -> list[psutil.Process]:
    """Returns the service processes of W&B that are still alive."""
    try:
        children = psutil.Process().children(recursive=True)
    except (psutil.Error, OSError):  # on systems where processes cannot see each other
        return []
    return [child for child in children if _is_service(child)]


def _is_service(process: psutil.Process) -> bool:
    try:
        return "wandb" in process.name() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.Error:  # it has ended
        return False


def one_line(text: str) -> str:
    """Returns a message of W&B as one line, without the parts that only its developers need."""
    noise = r"^wandb: (WARNING |ERROR )?| \[type=.*\]$"
    lines = [re.sub(noise, "", line).strip(" .:") for line in text.splitlines()]
    dull = r"\d+ validation errors? for Settings$|For further information|$"
    lines = [line for line in lines if not re.match(dull, line)]
    return ": ".join(lines[-1:] if "Traceback" in text else lines)
