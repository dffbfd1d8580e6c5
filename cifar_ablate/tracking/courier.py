"""Brings what run folders hold to MLflow while runs are trained, and keeps trying while MLflow does not answer.

A thread of its own, so that no training waits for a server. The folders are the truth: whatever was missed is read from
them again.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress

from cifar_ablate.errors import AblateError, BusyError, OutputError, TakenError, TrackingError
from cifar_ablate.folder import RunFolder, RunResult
from cifar_ablate.records import Key, RunIdentity
from cifar_ablate.tracking.claims import HEARTBEAT_SECONDS
from cifar_ablate.tracking.delivery import Delivery
from cifar_ablate.tracking.parcel import Parcel, in_turn
from cifar_ablate.tracking.store import Tracking

MAX_REFUSALS = 5
"""So often a run that has ended is offered to an MLflow that answers and does not take it; then it is left to sync."""
PUSH_SECONDS = 5.0
"""Epochs of a run that goes on are delivered together, at most so often: each request takes time from the training."""
SETTLING_SECONDS = 1.0
"""So long after a claim it is looked at again, before any metric: other claims of that moment are then written."""
FIRST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS = 1.0, 15.0
"""Between two attempts to reach a server that does not answer; each pause is twice the one before."""


class Courier:
    """Delivers run folders in the background; every method but ``close`` returns at once."""

    def __init__(
        self,
        tracking: Tracking | None,
        experiments: Mapping[str, str],
        *,
        on_note: Callable[[str], None] = lambda text: None,
        on_taken: Callable[[Key, str], None] = lambda key, why: None,
        keeps_checkpoints: bool = False,
    ) -> None:
        """``tracking`` None: everything stays in the folders. ``on_taken``: another process has claimed the run.

        ``keeps_checkpoints``: MLflow gets them, too, until the run has its result.

        ``experiments``: id by study label. Both callbacks are called from the courier's thread.
        """
        self.is_offline, self.experiments = tracking is None, experiments
        self.on_note, self.on_taken, self.keeps_checkpoints = on_note, on_taken, keeps_checkpoints
        self.parcels: dict[Key, Parcel] = {}
        self.changed = threading.Condition()
        self.is_closing = False
        self.is_over = False
        """What is not delivered now will not be."""
        self.is_away = False
        self.pause_seconds = FIRST_PAUSE_SECONDS
        self.last_beat = self.last_success = time.monotonic()
        self.thread = threading.Thread(target=self._work, args=(tracking,), name="courier", daemon=True)
        if tracking is not None:
            self.thread.start()
            threading.Thread(target=self._keep_alive, name="courier's heartbeats", daemon=True).start()

    def begin(self, run: RunIdentity, folder: RunFolder) -> None:
        """A run is being trained into this folder."""
        with self.changed:
            self.parcels[run.key] = Parcel(run, folder)
            self.changed.notify()

    def news(self, key: Key) -> None:
        """Its folder has more epochs."""
        with self.changed:
            if key in self.parcels:
                self.parcels[key].has_news = True
                self.changed.notify()

    def end(
        self, run: RunIdentity, folder: RunFolder, outcome: str, *, result: RunResult | None = None, reason: str = ""
    ) -> None:
        """It has ended: finished, diverged or failed with its result, or killed."""
        with self.changed:
            parcel = self.parcels.setdefault(run.key, Parcel(run, folder))
            parcel.outcome, parcel.result, parcel.reason, parcel.has_news = outcome, result, reason, True
            self.changed.notify()

    def drop(self, key: Key) -> None:
        """It is no longer ours to deliver."""
        with self.changed:
            self.parcels.pop(key, None)

    def close(self, *, patience_seconds: float, hurry: Callable[[], bool] = lambda: False) -> list[Parcel]:
        """Deliver what is left; gives what could not be, ``patience_seconds`` after the last success.

        ``hurry`` is asked often; where it says so, nothing is waited for.
        """
        with self.changed:
            self.is_closing = True
            self._wait(patience_seconds, hurry)
            self.is_over = True
            left = [parcel for parcel in self.parcels.values() if not parcel.is_done or parcel.trouble]
            return sorted(left, key=lambda parcel: parcel.begun)

    def settle(self, *, patience_seconds: float, hurry: Callable[[], bool] = lambda: False) -> None:
        """Wait, as long as ``close`` would, until everything is delivered; what is not stays on its way."""
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
        return any(not parcel.is_done for parcel in self.parcels.values())

    def _work(self, tracking: Tracking) -> None:
        while True:
            with self.changed:
                self.changed.wait_for(self._has_work, timeout=self._until_next())
                if self.is_over or (self.is_closing and not self._left()):
                    break
                waiting = [parcel for parcel in in_turn(self.parcels.values()) if parcel.wait_left() == 0]
            self._make_round(tracking, waiting)
        for parcel in list(self.parcels.values()):  # in a process that lives on, a claim would hold for ever
            if parcel.delivery is not None and (parcel.trouble or not parcel.is_done):
                with suppress(TrackingError, OutputError):
                    parcel.delivery.let_go()

    def _make_round(self, tracking: Tracking, waiting: Sequence[Parcel]) -> None:
        """Offer each of these parcels once, and say where it is due that this process is alive."""
        trouble: AblateError | None = None
        was_refused = False
        try:
            self._beat()
            for parcel in waiting:
                if self.is_over:
                    return
                self._beat()  # an upload may take long
                try:
                    was_refused |= not self._attempt(tracking, parcel)
                except OutputError as error:  # what cannot be written for one run may be for the next
                    trouble = error
        except (TrackingError, OutputError) as error:
            trouble = error
        if trouble is not None:
            self._wait_for_mlflow(trouble)
        elif was_refused:
            time.sleep(FIRST_PAUSE_SECONDS)
        elif waiting and self.is_away and not self.is_over:
            self.is_away, self.pause_seconds = False, FIRST_PAUSE_SECONDS
            self.on_note("MLflow answers again; it gets what it missed.")

    def _has_work(self) -> bool:
        news = any(parcel.wait_left() == 0 for parcel in in_turn(self.parcels.values()))
        return news or self.is_over or (self.is_closing and not self._left())

    def _until_next(self) -> float:
        next_beat = max(0.0, self.last_beat + HEARTBEAT_SECONDS - time.monotonic())
        return min([next_beat, *(parcel.wait_left() for parcel in in_turn(self.parcels.values()))])

    def _put_last(self, parcel: Parcel) -> None:
        """What cannot be opened now shall not be in the way of others."""
        with self.changed:
            if self.parcels.get(parcel.run.key) is parcel:
                self.parcels[parcel.run.key] = self.parcels.pop(parcel.run.key)

    def _attempt(self, tracking: Tracking, parcel: Parcel) -> bool:
        """Deliver a parcel's news; False where MLflow refuses them. Raises TrackingError where it does not answer."""
        parcel.has_news = False  # before the folder is read: what comes while it is read is news again
        try:
            self._deliver(tracking, parcel)
        except (TrackingError, OutputError) as error:
            parcel.has_news, parcel.trouble = True, str(error)
            self._put_last(parcel)
            if isinstance(error, OutputError) or not tracking.answers():  # a full disk may have room again in a while
                raise
            parcel.num_refusals += bool(parcel.outcome)
            parcel.is_done = parcel.num_refusals == MAX_REFUSALS
            return False
        except BusyError as error:
            parcel.delivery, parcel.has_news, parcel.trouble = None, True, str(error)
            self._put_last(parcel)
            return False
        except TakenError as error:
            self._give_up(parcel, error)
        except Exception as error:  # a damaged folder, or whatever else: the other runs are delivered all the same
            self._note_unexpected(parcel, str(error) or type(error).__name__)
        else:
            parcel.trouble, parcel.num_refusals = "", 0
        self._note_success()
        return True

    def _note_unexpected(self, parcel: Parcel, trouble: str) -> None:
        """What has ended is left as it is; of what is trained the heartbeats go on, or others would train it, too."""
        if parcel.outcome:
            parcel.is_done = True
        else:
            if not parcel.is_told:
                self.on_note(f"{parcel.run.name}: MLflow does not get its epochs ({trouble}); it is tried again")
            parcel.is_told = parcel.has_news = True
            parcel.not_before = time.monotonic() + PUSH_SECONDS
        parcel.trouble = trouble

    def _note_success(self) -> None:
        self.last_success = time.monotonic()

    def _deliver(self, tracking: Tracking, parcel: Parcel) -> None:
        outcome, result, is_training = parcel.outcome, parcel.result, not parcel.outcome
        if parcel.delivery is None:
            experiment = self.experiments[parcel.run.study]
            parcel.delivery = tracking.deliver(
                experiment, parcel.run, parcel.folder, is_training=is_training, on_success=self._note_success
            )
            parcel.not_before, parcel.has_news = time.monotonic() + SETTLING_SECONDS, True
            return
        parcel.delivery.confirm(is_training=is_training)
        parcel.not_before = time.monotonic() + PUSH_SECONDS
        if outcome and result is not None:
            parcel.delivery.finish(result)
        else:
            parcel.delivery.push(parcel.folder.history())
            if self.keeps_checkpoints and outcome in ("", "killed"):
                self._keep_checkpoint(parcel, parcel.delivery)
            if outcome:
                parcel.delivery.end(outcome, parcel.reason)
        parcel.is_done = bool(outcome)

    def _keep_checkpoint(self, parcel: Parcel, delivery: Delivery) -> None:
        """What MLflow does not take of it keeps neither the other news of a run from it, nor its end."""
        try:
            delivery.keep_checkpoint()
        except (TrackingError, OutputError) as error:
            if not parcel.checkpoint_trouble:
                self.on_note(f"{parcel.run.name}: its checkpoint is kept here alone ({error})")
            parcel.checkpoint_trouble = str(error)

    def _beat(self) -> None:
        if time.monotonic() - self.last_beat < HEARTBEAT_SECONDS:
            return
        self.last_beat = time.monotonic()
        with self.changed:
            held = [(parcel, parcel.delivery) for parcel in self.parcels.values() if not parcel.is_done]
        for parcel, delivery in held:
            if delivery is not None:
                self._beat_for(parcel, delivery)

    def _beat_for(self, parcel: Parcel, delivery: Delivery) -> None:
        """Raises TrackingError and OutputError where MLflow does not answer; others shall beat whatever else it is."""
        try:
            delivery.beat()
        except BusyError:
            parcel.delivery, parcel.has_news = None, True
        except TakenError as error:
            self._give_up(parcel, error)
        except (TrackingError, OutputError):
            raise
        except Exception as error:
            self._note_unexpected(parcel, str(error) or type(error).__name__)
        else:
            self._note_answer()

    def _keep_alive(self) -> None:
        """Renew the claims while the thread that does so else is at an upload; a large one takes minutes."""
        while self.thread.is_alive() and not self.is_over:
            self.thread.join(HEARTBEAT_SECONDS)
            if time.monotonic() - self.last_beat > 1.5 * HEARTBEAT_SECONDS:
                with self.changed:
                    held = [one.delivery for one in self.parcels.values() if one.delivery and not one.is_done]
                for delivery in held:
                    with suppress(Exception):  # the other thread will find out why
                        delivery.renew()
                        self._note_answer()

    def _note_answer(self) -> None:
        """MLflow answers, so it is worth waiting; not where it is something else that keeps a run from it."""
        if not self.is_away:
            self._note_success()

    def _give_up(self, parcel: Parcel, why: TakenError) -> None:
        parcel.is_done, parcel.trouble = True, ""
        self.on_taken(parcel.run.key, str(why))

    def _wait_for_mlflow(self, error: AblateError) -> None:
        if not self.is_away:
            self.is_away = True
            self.on_note(f"{error}. Training goes on; the run folders keep everything until MLflow takes it.")
        with self.changed:
            self.changed.wait_for(lambda: self.is_closing, timeout=self.pause_seconds)
        if self.is_closing:
            time.sleep(FIRST_PAUSE_SECONDS)
        self.pause_seconds = min(2 * self.pause_seconds, LONGEST_PAUSE_SECONDS)
