"""Secrets: current after every kind of rotation, and never shown."""

from __future__ import annotations

import copy
import os
import pickle
from pathlib import Path

import pytest

from sidecar.secrets import CHECK_INTERVAL_S, MAX_SECRET_BYTES, Secret, SecretUnreadableError
from sidecar.settings import SecretSource

KEY = "sk-not-a-real-key"


class Clock:
    def __init__(self) -> None:
        self.now_s = 100.0

    def __call__(self) -> float:
        return self.now_s

    def pass_check_interval(self) -> None:
        self.now_s += CHECK_INTERVAL_S


@pytest.fixture
def clock() -> Clock:
    return Clock()


def secret_in(path: Path, clock: Clock) -> Secret:
    return Secret(SecretSource(file=str(path)), {}, clock)


@pytest.mark.parametrize("ending", ["", "\n", "\r\n"])
def test_one_trailing_newline_is_not_part_of_the_secret(tmp_path: Path, clock: Clock, ending: str) -> None:
    path = tmp_path / "key"
    path.write_bytes((KEY + ending).encode())
    assert secret_in(path, clock).read() == KEY


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (b"", "is empty"),
        (b"\n", "is empty"),
        (b"  \n", "is empty"),
        (b"one\ntwo\n", "cannot be sent"),
        (b"with\x00nul", "cannot be sent"),
        (b"with\ttab", "cannot be sent"),
        ("schl\u00fcssel".encode(), "cannot be sent"),
        (b"\xff\xfe", "cannot be sent"),
        (b"a" * (MAX_SECRET_BYTES + 1), "more than 64 KiB"),
    ],
)
def test_unusable_content_is_refused_by_its_source(
    tmp_path: Path, clock: Clock, content: bytes, complaint: str
) -> None:
    path = tmp_path / "key"
    path.write_bytes(content)
    with pytest.raises(SecretUnreadableError, match=complaint) as caught:
        secret_in(path, clock).read()
    assert str(path) in str(caught.value)
    assert "two" not in str(caught.value)


def test_the_largest_secret_is_read(tmp_path: Path, clock: Clock) -> None:
    path = tmp_path / "key"
    path.write_bytes(b"a" * MAX_SECRET_BYTES)
    assert len(secret_in(path, clock).read()) == MAX_SECRET_BYTES


def test_a_missing_file_a_folder_and_a_fifo_are_refused_at_once(tmp_path: Path, clock: Clock) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    for path in (tmp_path / "missing", tmp_path, fifo):
        with pytest.raises(SecretUnreadableError, match=str(path)):
            secret_in(path, clock).read()


def test_a_changed_file_is_read_again_once_the_interval_has_passed(tmp_path: Path, clock: Clock) -> None:
    path = tmp_path / "key"
    path.write_text("old")
    secret = secret_in(path, clock)
    assert secret.read() == "old"
    path.write_text("brand-new")
    assert secret.read() == "old"
    clock.pass_check_interval()
    assert secret.read() == "brand-new"


def test_an_unchanged_file_is_not_read_again(tmp_path: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "key"
    path.write_text(KEY)
    secret = secret_in(path, clock)
    secret.read()
    opened: list[str] = []
    monkeypatch.setattr("sidecar.secrets.os.open", lambda path, flags: opened.append(path))
    clock.pass_check_interval()
    assert secret.read() == KEY
    assert opened == []


def test_a_rotation_by_symlink_swap_is_followed(tmp_path: Path, clock: Clock) -> None:
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "key").write_text(name)
    (tmp_path / "..data").symlink_to("one")
    (tmp_path / "key").symlink_to("..data/key")
    secret = secret_in(tmp_path / "key", clock)
    assert secret.read() == "one"
    (tmp_path / "..tmp").symlink_to("two")
    (tmp_path / "..tmp").rename(tmp_path / "..data")
    clock.pass_check_interval()
    assert secret.read() == "two"


def test_the_last_good_value_lives_through_a_rotation_half_done(tmp_path: Path, clock: Clock) -> None:
    path = tmp_path / "key"
    path.write_text("old")
    secret = secret_in(path, clock)
    secret.read()
    path.unlink()
    clock.pass_check_interval()
    assert secret.read() == "old"
    assert secret.problem is not None
    assert "No such file" in secret.problem
    path.write_text("")
    clock.pass_check_interval()
    assert secret.read() == "old"
    assert secret.problem is not None
    path.write_text("new")
    clock.pass_check_interval()
    assert secret.read() == "new"
    assert secret.problem is None


def test_a_file_that_comes_late_is_found(tmp_path: Path, clock: Clock) -> None:
    path = tmp_path / "key"
    secret = secret_in(path, clock)
    with pytest.raises(SecretUnreadableError):
        secret.read()
    path.write_text(KEY)
    clock.pass_check_interval()
    assert secret.read() == KEY


def test_the_environment_is_read_once_at_construction() -> None:
    environ = {"KEY": KEY}
    secret = Secret(SecretSource(env="KEY"), environ)
    environ.clear()
    assert secret.read() == KEY
    with pytest.raises(SecretUnreadableError, match="environment variable KEY is empty or not set"):
        Secret(SecretSource(env="KEY"), environ)


def test_matches_compares_whole_texts_of_any_kind(tmp_path: Path) -> None:
    secret = Secret(SecretSource(env="KEY"), {"KEY": KEY})
    assert secret.matches(KEY)
    assert not any(map(secret.matches, ["", KEY[:-1], KEY + "x", "\u00fc", "\udcff"]))


def test_no_printing_of_a_secret_shows_it() -> None:
    secret = Secret(SecretSource(env="KEY"), {"KEY": KEY})
    slots = {name: getattr(secret, name) for name in Secret.__slots__}
    hidden = slots["_value"]
    shown = [repr(secret), str(secret), f"{secret}", repr(slots), repr([secret]), repr(hidden), repr(hidden.reveal)]
    assert all(KEY not in text for text in shown)
    assert not hasattr(secret, "__dict__")
    assert not hasattr(hidden, "__dict__")


def test_a_secret_is_not_copied_or_pickled() -> None:
    secret = Secret(SecretSource(env="KEY"), {"KEY": KEY})
    for attempt in (pickle.dumps, copy.copy, copy.deepcopy):
        with pytest.raises(TypeError, match="not copied or pickled"):
            attempt(secret)
