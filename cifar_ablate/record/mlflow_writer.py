"""Uploads run folders to MLflow while runs are trained, and keeps trying while MLflow does not answer.

It runs in its own thread, so no training waits for a server. The folders are the truth: what was missed is read from
them again, so ``sync`` is the same loop over the folders of earlier commands.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from cifar_ablate.errors import AblateError, OutputError, TakenError, TrackingError
from cifar_ablate.process import ProcessId
from cifar_ablate.record.folder import RunFolder
from cifar_ablate.record.mlflow_store import Tracking
from cifar_ablate.record.mlflow_upload import RunUpload
from cifar_ablate.record.types import Key, RunIdentity

MAX_REFUSALS = 5
"""Maximum number of attempts for an ended run that an MLflow which answers does not take; `sync` can try again."""
UPLOAD_SECONDS = 5.0
"""Minimum time between two uploads of a run that is being trained: each request takes time from the training."""
FIRST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS = 1.0, 15.0
"""Pause before MLflow is tried again; it doubles with each failure."""


@dataclass
class PendingUpload:
    """A run that MLflow does not have completely."""

    run: RunIdentity
    folder: RunFolder
    begun: float = field(default_factory=time.monotonic)
    upload: RunUpload | None = None
    has_news: bool = True
    outcome: str = ""
    """finished, diverged, failed, killed or pruned; empty while the run is being trained."""
    reason: str = ""
    is_done: bool = False
    num_refusals: int = 0
    trouble: str = ""
    """Why the last attempt failed."""
    was_noted: bool = False
    """Was the user told that its epochs do not arrive?"""
    not_before: float = -math.inf
    """Time of the next upload, by the monotonic clock."""

    def wait_left(self) -> float:
        """Seconds until its news may be uploaded; infinite if there is none."""
        if self.is_done or not self.has_news:
            return math.inf
        return 0.0 if self.outcome else max(0.0, self.not_before - time.monotonic())


class MlflowWriter:
    """Uploads run folders in the background; every method but ``settle`` and ``close`` returns at once."""

    def __init__(
        self,
        tracking: Tracking | None,
        experiments: Mapping[str, str],
        *,
        on_note: Callable[[str], None] = lambda text: None,
        on_taken: Callable[[Key, str], None] = lambda key, why: None,
    ) -> None:
        """``tracking`` None: everything stays in the folders. ``experiments``: id by study label.

        ``on_taken``: another process trains the run or has finished it. Both callbacks are called from the thread.
        """
        self.is_offline, self.experiments = tracking is None, experiments
        self.on_note, self.on_taken = on_note, on_taken
        self.replaces: dict[Key, ProcessId] = {}
        """Processes that left a run RUNNING and are gone."""
        self.pending: dict[Key, PendingUpload] = {}
        self.changed = threading.Condition()
        self.is_closing = False
        self.is_over = False
        """Nothing is uploaded any more."""
        self.is_away = False
        self.pause_seconds = FIRST_PAUSE_SECONDS
        self.last_success = time.monotonic()
        self.thread = threading.Thread(target=self._work, args=(tracking,), name="MLflow writer", daemon=True)
        if tracking is not None:
            self.thread.start()

    def begin(self, run: RunIdentity, folder: RunFolder) -> None:
        """A run is being trained into this folder."""
        with self.changed:
            self.pending[run.key] = PendingUpload(run, folder)
            self.changed.notify()

    def news(self, key: Key) -> None:
        """The run's folder has more epochs."""
        with self.changed:
            if key in self.pending:
                self.pending[key].has_news = True
                self.changed.notify()

    def end(self, run: RunIdentity, folder: RunFolder, outcome: str, reason: str = "") -> None:
        """A run ended: finished, diverged, failed, killed or pruned."""
        with self.changed:
            one = self.pending.setdefault(run.key, PendingUpload(run, folder))
            one.outcome, one.reason, one.has_news = outcome, reason, True
            self.changed.notify()

    def has(self, key: Key) -> bool:
        """Was this run begun?"""
        return key in self.pending

    def drop(self, key: Key) -> None:
        """Do not upload this run: another process does."""
        with self.changed:
            self.pending.pop(key, None)

    def close(self, *, patience_seconds: float, hurry: Callable[[], bool] = lambda: False) -> list[PendingUpload]:
        """Upload what is left; returns what could not be, ``patience_seconds`` after the last success.

        If ``hurry``, which is called often, becomes true, nothing is waited for.
        """
        with self.changed:
            self.is_closing = True
            self._wait(patience_seconds, hurry)
            self.is_over = True
            left = [one for one in self.pending.values() if not one.is_done or one.trouble]
            return sorted(left, key=lambda one: one.begun)

    def settle(self, *, patience_seconds: float, hurry: Callable[[], bool] = lambda: False) -> None:
        """Wait as ``close`` does until everything is uploaded; what is not is tried again later."""
        with self.changed:
            self._wait(patience_seconds, hurry)

    def _wait(self, patience_seconds: float, hurry: Callable[[], bool]) -> None:
        self.last_success = time.monotonic()
        self.changed.notify()
        while self.thread.is_alive() and self._left() and not hurry():
            if time.monotonic() - self.last_success > patience_seconds:
                break
            self.changed.wait(0.1)

    def _left(self) -> bool:
        return any(not one.is_done for one in self.pending.values())

    def _work(self, tracking: Tracking) -> None:
        while True:
            with self.changed:
                next_one = min((one.wait_left() for one in self.pending.values()), default=math.inf)
                if next_one > 0 and not self._is_finished():
                    self.changed.wait(None if math.isinf(next_one) else next_one)
                if self._is_finished():
                    return
                waiting = [one for one in self.pending.values() if one.wait_left() == 0]
            self._try_each(tracking, waiting)

    def _is_finished(self) -> bool:
        return self.is_over or (self.is_closing and not self._left())

    def _try_each(self, tracking: Tracking, waiting: list[PendingUpload]) -> None:
        """Try each of these uploads once; pause if MLflow does not answer or refuses."""
        trouble: AblateError | None = None
        was_refused = False
        for one in waiting:
            if self.is_over:
                return
            try:
                was_refused |= not self._try(tracking, one)
            except OutputError as error:  # what cannot be written for one run may be possible for the next
                trouble = error
            except TrackingError as error:
                trouble = error
                break
        if trouble is not None:
            self._pause(trouble)
        elif was_refused:
            time.sleep(FIRST_PAUSE_SECONDS)
        elif waiting and self.is_away and not self.is_over:
            self.is_away, self.pause_seconds = False, FIRST_PAUSE_SECONDS
            self.on_note("MLflow answers again; it gets what it missed.")

    def _try(self, tracking: Tracking, one: PendingUpload) -> bool:
        """Upload a run's news; False if MLflow refuses it. Raises TrackingError if MLflow does not answer."""
        one.has_news = False  # before the folder is read: what is added meanwhile is news again
        one.not_before = time.monotonic() + UPLOAD_SECONDS
        outcome, reason = one.outcome, one.reason
        try:
            if one.upload is None:
                one.upload = tracking.upload(
                    self.experiments[one.run.study],
                    one.run,
                    one.folder,
                    replaces=self.replaces.get(one.run.key),
                    on_success=self._note_success,
                )
            one.upload.update(outcome, reason)
        except (TrackingError, OutputError) as error:
            one.has_news, one.trouble = True, str(error)
            self._put_last(one)
            if isinstance(error, OutputError) or not tracking.answers():  # a full disk may have room again soon
                raise
            one.num_refusals += bool(outcome)
            one.is_done = one.num_refusals == MAX_REFUSALS
            return False
        except TakenError as error:
            one.is_done, one.trouble = True, ""
            self.on_taken(one.run.key, str(error))
        except Exception as error:  # a damaged folder, or anything else: the other runs are uploaded all the same
            self._note_unexpected(one, str(error) or type(error).__name__)
        else:
            one.trouble, one.num_refusals, one.is_done = "", 0, bool(outcome)
        self._note_success()
        return True

    def _note_unexpected(self, one: PendingUpload, trouble: str) -> None:
        """Give up a run that has ended; try again later with one that is being trained."""
        if one.outcome:
            one.is_done = True
        else:
            if not one.was_noted:
                self.on_note(f"{one.run.name}: MLflow does not get its epochs ({trouble}); it is tried again")
            one.was_noted = one.has_news = True
        one.trouble = trouble

    def _put_last(self, one: PendingUpload) -> None:
        """A run that cannot be uploaded now must not be in the way of others."""
        with self.changed:
            if self.pending.get(one.run.key) is one:
                self.pending[one.run.key] = self.pending.pop(one.run.key)

    def _note_success(self) -> None:
        self.last_success = time.monotonic()

    def _pause(self, error: AblateError) -> None:
        if not self.is_away:
            self.is_away = True
            self.on_note(f"{error}. Training goes on; the run folders keep everything until MLflow takes it.")
        with self.changed:
            self.changed.wait_for(lambda: self.is_closing, timeout=self.pause_seconds)
        if self.is_closing:
            time.sleep(FIRST_PAUSE_SECONDS)
        self.pause_seconds = min(2 * self.pause_seconds, LONGEST_PAUSE_SECONDS)
