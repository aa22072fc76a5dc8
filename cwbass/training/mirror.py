"""A second place for a run's states, in any store, for machines whose disk goes with them.

It is filled while training goes on, and is made to look like the work folder: what is new there is copied, results
before the state that needs them and its JSON last, and what is gone there is deleted. If training is faster than the
network, states in between are passed over. What fails is told and counted, and never stops training.
"""

from __future__ import annotations

import functools
import hashlib
import json
import logging
import os
import re
import threading
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import IO, Any

from cwbass.errors import ParamsError
from cwbass.files import file_sha256, partial_file
from cwbass.storage import ObjectStore, is_key, open_store

logger = logging.getLogger(__name__)

SETTING = "train.checkpoint_uri"
FILES, EPOCH = "files", "-epoch"
LAST_SECONDS = 20.0  # how long the last state of an interrupted run may take: a pod has 30 seconds to end


def open_mirror(location: str, step: str, run: Mapping[str, Any]) -> Mirror:
    """The copy of one run's states below a location that many runs may share.

    Args:
        location: See :func:`cwbass.storage.open_store`.
        step: ``warmup`` or ``train``.
        run: What tells one run from another.

    Raises:
        ParamsError: The location has another form, or may not be used.
    """
    digest = hashlib.sha256(json.dumps(dict(run), sort_keys=True).encode()).hexdigest()
    store = open_store(f"{location.rstrip('/')}/{step}/{digest[:16]}", SETTING)
    if not isinstance(store, ObjectStore):
        raise ParamsError(
            f"{SETTING} is {location!r}, and {type(store).__name__} lacks a method: states must be fetched and deleted, too."
        )
    return Mirror(store)


class Mirror:
    """Keeps a store equal to a work folder, in a thread of its own.

    Args:
        store: Of this one run.
    """

    def __init__(self, store: ObjectStore) -> None:
        self.store = store
        self.counts: Counter[str] = Counter()  # uploads, failed_uploads
        self._there: set[str] | None = None  # keys of the store; None until it was asked
        self._next: dict[str, IO[bytes]] | None = None
        self._changed = threading.Condition()
        self._busy = False
        self._thread: threading.Thread | None = None

    def sync(self, folder: Path) -> None:
        """Begin to make the store look like ``folder``, as it is now; files may be deleted there meanwhile."""
        files: dict[str, IO[bytes]] = {}
        states = sorted(path.stem for path in folder.glob("*.json"))
        names = [f"{FILES}/{path.name}" for path in folder.glob(f"{FILES}/[!.]*")]
        for name in [*names, *(f"{state}.{kind}" for state in states for kind in ("pt", "json"))]:
            files[name] = (folder / name).open("rb")
        with self._changed:
            _close(self._next)
            self._next = files
            self._changed.notify_all()
            if self._thread is None:
                # A daemon: a store that does not answer must not keep the process alive.
                self._thread = threading.Thread(target=self._work, name="mirror", daemon=True)
                self._thread.start()

    def wait(self, seconds: float = LAST_SECONDS) -> bool:
        """Wait for what was begun; returns whether it is done."""
        with self._changed:
            done = self._changed.wait_for(lambda: not self._busy and self._next is None, timeout=seconds)
        if not done:
            logger.warning("the last state did not reach %s within %.0f seconds", SETTING, seconds)
        return done

    def fetch(self, folder: Path, usable: Callable[[str, Mapping[str, Any]], bool]) -> bool:
        """Bring the newest whole state into an empty folder.

        Args:
            folder: Work folder.
            usable: Says of a state's name and JSON whether it will do.

        Returns:
            Whether there was one.

        Raises:
            ServiceError: The store cannot be read. To begin anew then would throw away what is there.
        """
        there = self._there = set(self.store.list(""))
        names = (key.removesuffix(".json") for key in there if key.endswith(".json"))
        for name in sorted(filter(is_plain_name, names), key=newest_first):
            try:
                if self._fetch_state(name, folder, usable):
                    logger.info("fetched %s", self.store.uri(f"{name}.pt"))
                    return True
            except _Torn as torn:
                self.counts["fallbacks"] += 1
                logger.warning("%s of %s is missing or damaged. Trying the state before it.", self.store.uri(str(torn)), name)
        return False

    def clear(self) -> None:
        """Delete all that is there."""
        self._try(self._delete_all)

    def _delete_all(self) -> None:
        for key in self.store.list(""):
            self.store.delete(key)
        self._there = set()

    def close(self, *, clear: bool) -> None:
        """The run is done: wait for what was begun, and delete it all if it is not wanted."""
        if self.wait() and clear:
            self.clear()

    def _fetch_state(self, name: str, folder: Path, usable: Callable[[str, Mapping[str, Any]], bool]) -> bool:
        (folder / FILES).mkdir(parents=True, exist_ok=True)
        with partial_file(folder / f"{name}.json") as partial:
            self.store.fetch(f"{name}.json", partial)
            commit = _read_commit(partial, f"{name}.json")
            if not usable(name, commit):
                return False
            wanted = {f"{name}.pt": commit["sha256"], **{f"{FILES}/{digest}": digest for digest in commit["files"].values()}}
            for key, digest in wanted.items():
                if self._there is not None and key not in self._there:
                    raise _Torn(key)
                self.store.fetch(key, folder / key)
                if file_sha256(folder / key) != digest:
                    (folder / key).unlink()
                    raise _Torn(key)
            os.replace(partial, folder / f"{name}.json")
            return True

    def _work(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._next is not None)
                files, self._next, self._busy = self._next or {}, None, True
            try:
                self._try(functools.partial(self._copy, files))
            finally:
                _close(files)
                with self._changed:
                    self._busy = False
                    self._changed.notify_all()

    def _copy(self, files: Mapping[str, IO[bytes]]) -> None:
        if self._there is None:
            self._there = set(self.store.list(""))
        whole = set(self._there)
        for key, file in files.items():
            # A state's two files go together: one of an earlier attempt would not fit the other.
            if key in whole and (key.startswith(f"{FILES}/") or f"{Path(key).stem}.json" in whole):
                continue
            self.store.put(key, file)
            self._there.add(key)
            self.counts["uploads"] += 1
        for key in sorted(self._there - files.keys(), key=lambda key: not key.endswith(".json")):
            self.store.delete(key)
            self._there.discard(key)

    def _try(self, work: Callable[[], object]) -> None:
        try:
            work()
        except Exception as error:  # whatever a plugin's store raises
            self.counts["failed_uploads"] += 1
            logger.warning("the copy of the newest state failed, and training goes on: %s", error)


class _Torn(Exception):
    """A file of a state is missing or damaged."""


def _read_commit(path: Path, key: str) -> dict[str, Any]:
    try:
        commit = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise _Torn(key) from error
    if not is_commit(commit):
        raise _Torn(key)
    return dict(commit)


def _close(files: Mapping[str, IO[bytes]] | None) -> None:
    for file in (files or {}).values():
        file.close()


def is_plain_name(name: str) -> bool:
    """Whether a name is that of a file in a folder, and not a way out of it."""
    return is_key(name) and "/" not in name


def is_commit(values: Any) -> bool:
    """Whether the JSON of a state says all that it should: a damaged or foreign one does not count, and leads nowhere."""
    if not isinstance(values, dict):
        return False
    files, run = values.get("files"), values.get("run")
    if not isinstance(files, dict) or not isinstance(run, dict) or not isinstance(values.get("torch"), str):
        return False
    digests = (values.get("sha256"), *files.values())
    return (
        isinstance(values.get("world_size"), int)
        and all(map(is_plain_name, files))
        and all(isinstance(digest, str) and re.fullmatch("[0-9a-f]{64}", digest) for digest in digests)
    )


def newest_first(name: str) -> tuple[int, int]:
    """Sorts names of states, ``<part>-<stage>-<step>`` with EPOCH behind it where an epoch ended there."""
    part, *_, step = name.removesuffix(EPOCH).split("-")
    return (-int(part), -int(step)) if part.isdigit() and step.isdigit() else (0, 0)
