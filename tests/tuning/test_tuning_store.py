"""The store of tuned settings: what it finds, and that no file can break or mislead it."""

from __future__ import annotations

import json
import math
import multiprocessing
from dataclasses import replace
from pathlib import Path

import pytest
from pydantic import ValidationError

from gncompile.app import tune_command as command
from gncompile.base import config
from gncompile.errors import GncompileError
from gncompile.tuning import store as stores
from gncompile.tuning.cpu import CpuBench
from gncompile.tuning.device import this_device
from gncompile.tuning.problem import Key, Variants
from gncompile.tuning.search import Outcome, Trial
from gncompile.tuning.store import (
    Entry,
    Store,
    StoredTrial,
    TuningWarning,
    bucket,
    entry_of,
    import_file,
)
from gncompile.tuning.tuner import from_store

KEY = Key("damped_inverse", "abc", (400,), "float32", "highest")
BORDER: dict[str, int | str | None] = {"border": 1}


@pytest.fixture(autouse=True)
def _folder(tmp_path: Path):
    with config.using(tuning=tmp_path / "tuning"):
        yield


def entry(key: Key = KEY, options: dict[str, int | str | None] = BORDER) -> Entry:
    trials = (Trial({}, 2.0, 0.2), Trial(options, 1.0, 0.1))
    return entry_of(Outcome(key, options, trials), "quick", this_device())


def saved(*entries: Entry) -> Store:
    store = Store.open()
    assert store.add(entries)
    return store


def anything(kernel: str, options: object) -> bool:
    return True


def found(key: Key) -> Entry | None:
    return Store.open().look_up(key, anything)


def test_a_stored_entry_is_found_again() -> None:
    saved(entry())
    assert found(KEY) == entry()


@pytest.mark.parametrize(
    "change",
    [
        {"kernel": "affine"},
        {"source": "abd"},
        {"dtype": "float64"},
        {"precision": "high"},
        {"shape": (800,)},
    ],
)
def test_another_key_finds_nothing(change: dict[str, object]) -> None:
    saved(entry())
    assert found(replace(KEY, **change)) is None  # type: ignore[arg-type]


def test_the_nearest_shape_of_the_bucket_is_the_fallback() -> None:
    near, far = replace(KEY, shape=(420,)), replace(KEY, shape=(600,))
    assert bucket((420,)) == bucket((450,)) != bucket((800,))
    saved(entry(far), entry(near))
    nearest = found(replace(KEY, shape=(450,)))
    assert nearest is not None
    assert nearest.shape == (420,)
    exact = found(far)
    assert exact is not None
    assert exact.shape == (600,)


def test_options_the_operation_does_not_know_are_not_used() -> None:
    saved(entry())
    assert Store.open().look_up(KEY, lambda kernel, options: False) is None


def test_a_new_entry_replaces_the_old_one_and_keeps_the_others() -> None:
    other = replace(KEY, shape=(50,))
    saved(entry(), entry(other))
    saved(entry(options={}))
    store = Store.open()
    assert len(store.entries) == 2
    again = store.look_up(KEY, anything)
    assert again is not None
    assert again.options == {}


def test_what_another_process_replaced_or_cleared_stays_so() -> None:
    saved(entry(), entry(replace(KEY, shape=(50,))))
    early, other = Store.open(), replace(KEY, shape=(9,))
    Store.open().clear()
    saved(entry(options={}))
    assert early.add([entry(other)])
    assert {e.shape: e.options for e in Store.open().entries} == {(400,): {}, (9,): BORDER}


def test_entries_of_other_versions_are_stale(monkeypatch: pytest.MonkeyPatch) -> None:
    saved(entry())
    now = {**stores.versions(), "torch": "99.0"}
    monkeypatch.setattr(stores, "versions", lambda kind: now)
    store = Store.open()
    assert store.look_up(KEY, anything) is None
    with pytest.warns(
        TuningWarning, match=r"stale .*: 1 tuned setting in .* \(torch .* then, 99\.0 now"
    ):
        assert from_store(store, CpuBench({"inverse": KEY})) == {}


def test_entries_of_other_code_are_stale() -> None:
    saved(entry())
    with pytest.warns(TuningWarning, match="the measured code has changed"):
        assert from_store(Store.open(), CpuBench({"inverse": replace(KEY, source="new")})) == {}


def test_an_entry_of_another_form_is_neither_used_nor_stale(
    recwarn: pytest.WarningsRecorder,
) -> None:
    """One kernel at one shape, with other arguments or another device function."""
    saved(entry(replace(KEY, form="one")))
    assert from_store(Store.open(), CpuBench({"inverse": replace(KEY, form="other")})) == {}
    assert not recwarn
    wanted = CpuBench({"inverse": replace(KEY, form="one")})
    assert from_store(Store.open(), wanted) == {"inverse": BORDER}


def test_no_warning_once_a_stale_entry_is_measured_anew(recwarn: pytest.WarningsRecorder) -> None:
    saved(entry(), entry(replace(KEY, source="new")))
    assert from_store(Store.open(), CpuBench({"inverse": replace(KEY, source="new")})) == {
        "inverse": BORDER
    }
    assert not recwarn.list


# --- files that cannot be used ------------------------------------------------------------------------


def whole() -> str:
    return saved(entry()).path.read_text()


def other_value(text: str, **changes: object) -> str:
    return json.dumps({**json.loads(text), **changes})


def entry_with(text: str, **changes: object) -> str:
    data = json.loads(text)
    data["entries"][0].update(changes)
    return json.dumps(data)


DAMAGED = {
    "empty": lambda text: "",
    "truncated": lambda text: text[: len(text) // 2],
    "binary": lambda text: "\x00\x01\x02",
    "a list": lambda text: "[1, 2]",
    "no format": lambda text: "{}",
    "deeply nested": lambda text: "[" * 100_000,
    "missing entries": lambda text: json.dumps({"format": 1}),
    "wrong type": lambda text: entry_with(text, shape="400"),
    "unknown key": lambda text: entry_with(text, surprise=1),
    "nested options": lambda text: entry_with(text, options={"border": [1]}),
    "foreign version": lambda text: other_value(text, format=2),
    "foreign format": lambda text: other_value(text, format="x"),
    "another device": lambda text: other_value(
        text, device={"kind": "cpu", "name": "x", "capability": "y", "threads": 1}
    ),
}


@pytest.mark.parametrize("damage", DAMAGED.values(), ids=DAMAGED)
def test_a_file_that_cannot_be_used_holds_nothing_and_says_why(damage) -> None:
    text = whole()
    path = Store.open().path
    path.write_text(damage(text))
    store = Store.open()
    assert store.entries == ()
    assert len(store.notes) == 1
    assert str(path) in store.notes[0]
    with pytest.warns(TuningWarning, match="are ignored: "):
        assert from_store(store, CpuBench({"inverse": KEY})) == {}


def test_bytes_that_are_no_text() -> None:
    path = saved(entry()).path
    path.write_bytes(b"\xff\xfe\xfa")
    assert "damaged" in Store.open().notes[0]


def test_a_damaged_file_is_replaced_by_new_settings() -> None:
    path = saved(entry()).path
    path.write_text("{")
    saved(entry())
    assert found(KEY) == entry()


def test_a_foreign_version_is_left_as_it_is() -> None:
    path = Store.open().path
    foreign = other_value(whole(), format=2)
    path.write_text(foreign)
    store = Store.open()
    assert not store.add([entry()])
    assert path.read_text() == foreign
    assert "has format 2" in store.notes[-1]
    # What was found serves this process all the same.
    assert store.look_up(KEY, anything) == entry()


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with config.using(tuning=tmp_path / "file" / "inside"):
        store = Store.open()
        assert not store.add([entry()])
        assert not store.add([entry()])
        (note,) = store.notes
        assert "are not kept" in note
        assert store.look_up(KEY, anything) == entry()


def test_a_disk_that_is_full(monkeypatch: pytest.MonkeyPatch) -> None:
    before = whole()

    def full(*arguments: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(stores, "atomic_write", full)
    store = Store.open()
    assert not store.add([entry(options={})])
    assert "No space left" in store.notes[-1]
    assert store.path.read_text() == before


def test_a_lock_held_for_too_long(monkeypatch: pytest.MonkeyPatch) -> None:
    store = saved(entry())
    monkeypatch.setattr(stores, "LOCK_SECONDS", 0.01)
    with store._lock():
        late = Store.open()
        assert not late.add([entry(options={})])
    assert "are not kept" in late.notes[-1]


def _add(folder: Path, sizes: range) -> None:
    with config.using(tuning=folder):
        for size in sizes:
            assert Store.open().add([entry(replace(KEY, shape=(size,)))])


def test_many_processes_write_at_once(tmp_path: Path) -> None:
    folder = tmp_path / "shared"
    context = multiprocessing.get_context("fork")
    ranges = [range(start, start + 5) for start in (100, 200, 300, 400)]
    workers = [context.Process(target=_add, args=(folder, sizes)) for sizes in ranges]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
        assert worker.exitcode == 0
    with config.using(tuning=folder):
        store = Store.open()
    assert not store.notes
    assert {e.shape[0] for e in store.entries} == {size for sizes in ranges for size in sizes}


# --- export, import, pin ------------------------------------------------------------------------------


def test_export_and_import(tmp_path: Path) -> None:
    saved(entry()).export(tmp_path / "out.json")
    with config.using(tuning=tmp_path / "elsewhere"):
        saved(entry(replace(KEY, shape=(7,))))
        store = import_file(tmp_path / "out.json")
        assert {e.shape for e in store.entries} == {(400,), (7,)}
        assert found(KEY) == entry()


def pinned(tmp_path: Path) -> Path:
    device = this_device().model_copy(update={"name": "some other processor"})
    path = tmp_path / "pinned.json"
    Store(path, device, entries=(entry(),)).export(path)
    return path


def test_a_pinned_file_holds_on_any_device_and_version(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = pinned(tmp_path)
    monkeypatch.setattr(stores, "versions", lambda kind: {"torch": "99.0"})
    variants: Variants = from_store(Store.pin(path), CpuBench({"inverse": KEY}))
    assert variants == {"inverse": BORDER}


def test_a_pinned_file_is_never_written(tmp_path: Path) -> None:
    store = Store.pin(pinned(tmp_path))
    with pytest.raises(GncompileError, match="a pinned file of settings is not written"):
        store.add([entry()])


@pytest.mark.parametrize("text", ["", "{}", '{"format": 2}', None])
def test_a_file_asked_for_by_name_must_be_usable(tmp_path: Path, text: str | None) -> None:
    path = tmp_path / "given.json"
    if text is not None:
        path.write_text(text)
    for use in (Store.pin, import_file):
        with pytest.raises(GncompileError, match="the file of tuned settings"):
            use(path)


# --- files of others ----------------------------------------------------------------------------------


def exported(tmp_path: Path, **changes: object) -> Path:
    """A file to import, whose entry and its trial differ."""
    text = json.loads(whole())
    text["entries"][0].update(changes)
    path = tmp_path / "given.json"
    path.write_text(json.dumps(text))
    return path


@pytest.mark.parametrize("number", [math.inf, -math.inf, math.nan, -1.0])
def test_no_store_takes_a_number_that_is_no_time(tmp_path: Path, number: float) -> None:
    trial = {"options": {}, "predicted": number, "seconds": None, "rejected": None}
    given = exported(tmp_path, kernel="other", trials=[trial])
    before = Store.open().path.read_text()
    with pytest.raises(GncompileError, match="predicted"):
        import_file(given)
    with pytest.raises(ValidationError):
        StoredTrial(options={}, predicted=number, seconds=None, rejected=None)
    assert Store.open().path.read_text() == before


def test_outcomes_that_were_not_finite_are_stored_without(tmp_path: Path) -> None:
    trials = (Trial(BORDER, 1.0, math.inf), Trial({}, math.inf, 0.5, "a\x1b[31m"))
    stored = entry_of(Outcome(KEY, BORDER, trials), "full", this_device())
    assert saved(stored).path.read_text().count("Infinity") == 0
    assert found(KEY) == stored
    assert [trial.seconds for trial in stored.trials] == [None]


@pytest.mark.parametrize(
    "changes",
    [
        {"kernel": "a\x1b[2J"},
        {"kernel": "a" * 1000},
        {"shape": [-1]},
        {"shape": [2**70]},
        {"options": {"border": 10**30}},
        {"note": "\x00"},
        {"trials": "none"},
    ],
)
def test_no_store_takes_what_none_of_ours_writes(
    tmp_path: Path, changes: dict[str, object]
) -> None:
    with pytest.raises(GncompileError, match="is damaged at entries"):
        import_file(exported(tmp_path, **changes))


def test_a_device_of_any_name_is_one_file(tmp_path: Path) -> None:
    text = json.loads(whole())
    text["device"]["name"] = "../" * 60 + "x"
    (tmp_path / "given.json").write_text(json.dumps(text))
    assert import_file(tmp_path / "given.json").path.parent == Store.open().path.parent


def test_a_damaged_file_is_kept_aside() -> None:
    path = saved(entry()).path
    for number, aside in enumerate(("", "-2"), start=1):
        path.write_text("{" * number)
        store = saved(entry())
        kept = path.with_name(f"{path.name}.damaged{aside}")
        assert kept.read_text() == "{" * number
        assert str(kept) in store.notes[-1]


def test_a_folder_in_place_of_a_store_is_left_alone() -> None:
    path = Store.open().path
    path.mkdir(parents=True)
    store = Store.open()
    assert not store.add([entry()])
    assert path.is_dir()


def test_a_long_list_is_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    saved(*(entry(replace(KEY, shape=(size,))) for size in range(30)))
    monkeypatch.setattr(command, "LISTED", 5)
    said: list[str] = []
    command.list_stores(said.append)
    assert said[-1].startswith("and 25 more")
    assert len("\n".join(said).splitlines()) < 15
