"""Parts are fetched whole, checked, and gone on with; whatever goes wrong is said, and nothing half-made is left."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import io
import json
import shutil
import tarfile
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import ClassVar

import collage_pictures
import pytest

from lvlm_guard.errors import InputError
from lvlm_guard.testbed.collage import parts
from lvlm_guard.testbed.collage.folders import VARIABLE, default_folder, ready_folder
from lvlm_guard.testbed.collage.parts import PARTIAL, PublishedPart, fetch_part
from lvlm_guard.testbed.collage.world import picture_parts
from lvlm_guard.testbed.collage.world.picture_parts import CONTENTS, PICTURE_PARTS, fetch_pictures, open_pictures
from lvlm_guard.testbed.collage.world.things import THINGS
from lvlm_guard.testbed.errors import TestbedError

CONTENT = bytes(range(256)) * 4000


class Server(BaseHTTPRequestHandler):
    """Serves files, from a byte on where asked; breaks off after `cut` bytes, once."""

    files: ClassVar[dict[str, bytes]] = {}
    asked: ClassVar[list[str | None]] = []
    cut: ClassVar[list[int]] = []
    can_resume: ClassVar[list[bool]] = [True]

    def do_GET(self) -> None:
        content = self.files.get(self.path)
        if content is None:
            self.send_error(404)
            return
        wanted = self.headers["Range"]
        self.asked.append(wanted)
        start = int(wanted.split("=")[1].rstrip("-")) if wanted and self.can_resume[0] else 0
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(content) - start))
        self.end_headers()
        self.wfile.write(content[start : start + self.cut.pop()] if self.cut else content[start:])

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@pytest.fixture
def server() -> Iterator[str]:
    Server.files, Server.asked, Server.cut, Server.can_resume = {"/part.tgz": CONTENT}, [], [], [True]
    with ThreadingHTTPServer(("127.0.0.1", 0), Server) as http:
        threading.Thread(target=http.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{http.server_port}"
        http.shutdown()


@pytest.fixture
def part(server: str) -> PublishedPart:
    checksum = f"sha256:{hashlib.sha256(CONTENT).hexdigest()}"
    return PublishedPart("npm part", "1.0", f"{server}/part.tgz", len(CONTENT), checksum, "MIT", "bytes")


def test_a_part_is_announced_and_fetched_once(part: PublishedPart, tmp_path: Path) -> None:
    said: list[str] = []
    path = fetch_part(part, tmp_path / "parts", said.append)
    assert path.read_bytes() == CONTENT
    assert fetch_part(part, tmp_path / "parts", said.append) == path
    assert len(said) == len(Server.asked) == 1
    assert all(word in said[0] for word in ("npm part", "1.0", "1.0 MB", "MIT", part.url))
    assert [one.name for one in path.parent.iterdir()] == ["part.tgz"]


def test_an_interrupted_fetch_goes_on_where_it_was(part: PublishedPart, tmp_path: Path) -> None:
    Server.cut.append(300_000)
    with pytest.raises(TestbedError, match="run the same command again"):
        fetch_part(part, tmp_path, print)
    kept = (tmp_path / f"part.tgz{PARTIAL}").stat().st_size
    assert 0 < kept <= 300_000
    assert not (tmp_path / "part.tgz").exists()
    said: list[str] = []
    assert fetch_part(part, tmp_path, said.append).read_bytes() == CONTENT
    assert Server.asked[-1] == f"bytes={kept}-"
    assert "0.3 MB are there" in said[0]


def test_a_server_that_cannot_go_on_starts_again(part: PublishedPart, tmp_path: Path) -> None:
    (tmp_path / f"part.tgz{PARTIAL}").write_bytes(CONTENT[:1000])
    Server.can_resume[0] = False
    assert fetch_part(part, tmp_path, print).read_bytes() == CONTENT


def test_what_is_not_the_part_is_refused_and_deleted(part: PublishedPart, tmp_path: Path) -> None:
    Server.files["/part.tgz"] = CONTENT[:-1] + b"x"
    with pytest.raises(TestbedError, match=r"is not version 1\.0.*checksum"):
        fetch_part(part, tmp_path, print)
    assert not list(tmp_path.iterdir())


def test_a_wrong_rest_is_deleted_so_that_the_next_run_starts_anew(part: PublishedPart, tmp_path: Path) -> None:
    (tmp_path / f"part.tgz{PARTIAL}").write_bytes(b"other" * 100)
    with pytest.raises(TestbedError, match="checksum"):
        fetch_part(part, tmp_path, print)
    assert fetch_part(part, tmp_path, print).read_bytes() == CONTENT


def test_a_file_put_there_by_hand_is_taken(part: PublishedPart, tmp_path: Path) -> None:
    (tmp_path / "part.tgz").write_bytes(CONTENT)
    assert fetch_part(part, tmp_path, pytest.fail).read_bytes() == CONTENT
    assert not Server.asked


def test_a_part_that_is_nowhere_is_an_error_that_names_the_place(part: PublishedPart, tmp_path: Path) -> None:
    with pytest.raises(TestbedError, match="404"):
        fetch_part(dataclasses.replace(part, url=part.url.replace("part", "other")), tmp_path, print)
    closed = dataclasses.replace(part, url="http://127.0.0.1:9/part.tgz")
    with pytest.raises(TestbedError, match=r"refused.*by hand"):
        fetch_part(closed, tmp_path, print)


def test_without_room_nothing_is_fetched(part: PublishedPart, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parts.shutil, "disk_usage", lambda _: SimpleNamespace(free=10))
    with pytest.raises(TestbedError, match="Make room"):
        fetch_part(part, tmp_path, pytest.fail)
    assert not Server.asked


def test_a_full_disk_is_told_as_such(part: PublishedPart, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(parts, "put", full)
    with pytest.raises(TestbedError, match="No space left"):
        fetch_part(part, tmp_path, print)


def test_a_folder_without_a_parent_is_refused(part: PublishedPart, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="does not exist"):
        fetch_part(part, tmp_path / "no" / "parts", print)


def test_the_usual_folder_is_the_variable_else_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, str(tmp_path / "mine"))
    assert default_folder() == tmp_path / "mine" / "collage"
    assert ready_folder() == tmp_path / "mine" / "collage"
    assert default_folder().is_dir()
    monkeypatch.delenv(VARIABLE)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert default_folder() == tmp_path / "lvlm_guard" / "collage"


def package(rendering: str, leave_out: str = "") -> bytes:
    source, buffer = PICTURE_PARTS[rendering], io.BytesIO()
    wanted = {f"{source.folder}/{thing.code}{source.suffix}": thing.name for thing in THINGS}
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        for name in (*wanted, *source.papers, f"{source.folder}/unwanted{source.suffix}"):
            if name == leave_out:
                continue
            data = collage_pictures.picture_file(wanted.get(name, "dog"), source.suffix)
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return buffer.getvalue()


@pytest.fixture
def packages(server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    serve(server, monkeypatch, package)


def serve(server: str, monkeypatch: pytest.MonkeyPatch, build) -> None:
    """Serve small packages in place of the real ones."""
    sources = {}
    for rendering, source in PICTURE_PARTS.items():
        content = build(rendering)
        Server.files[f"/{rendering}.tgz"] = content
        checksum = f"sha256:{hashlib.sha256(content).hexdigest()}"
        url = f"{server}/{rendering}.tgz"
        small = dataclasses.replace(source.part, url=url, size=len(content), checksum=checksum)
        sources[rendering] = dataclasses.replace(source, part=small)
    monkeypatch.setattr(picture_parts, "PICTURE_PARTS", sources)


@pytest.mark.usefixtures("packages")
def test_pictures_are_fetched_once_and_their_packages_deleted(tmp_path: Path) -> None:
    said: list[str] = []
    fetch_pictures(tmp_path, said.append)
    fetch_pictures(tmp_path, said.append)
    assert len(said) == 2
    assert "Apache-2.0" in said[1]
    assert sorted(one.name for one in tmp_path.iterdir()) == ["fluent", "noto"]
    assert (tmp_path / "noto" / "LICENSE").is_file()
    assert not list(tmp_path.glob("*/unwanted*"))
    assert open_pictures("noto", tmp_path).cut_out("dog", 32).shape[2] == 4


@pytest.mark.usefixtures("packages")
def test_a_damaged_picture_is_refused_and_fetched_again(tmp_path: Path) -> None:
    fetch_pictures(tmp_path, print)
    damaged = tmp_path / "fluent" / f"{THINGS[0].code}.webp"
    damaged.write_bytes(b"nothing")
    with pytest.raises(InputError, match=f"{damaged.name} is missing or damaged"):
        open_pictures("fluent", tmp_path)
    fetch_pictures(tmp_path, print)
    open_pictures("fluent", tmp_path)


@pytest.mark.usefixtures("packages")
def test_pictures_of_another_version_are_refused_and_replaced(tmp_path: Path) -> None:
    fetch_pictures(tmp_path, print)
    contents = tmp_path / "noto" / CONTENTS
    contents.write_text(json.dumps({**json.loads(contents.read_text()), "checksum": "sha512:0"}))
    with pytest.raises(InputError, match="another version"):
        open_pictures("noto", tmp_path)
    fetch_pictures(tmp_path, print)
    open_pictures("noto", tmp_path)


def test_a_package_that_lacks_a_picture_is_an_error(
    server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lacking = f"package/assets/{THINGS[3].code}.webp"
    serve(server, monkeypatch, functools.partial(package, leave_out=lacking))
    with pytest.raises(TestbedError, match=f"lacks {lacking}"):
        fetch_pictures(tmp_path, print)
    assert [one.name for one in tmp_path.iterdir()] == ["fluent.tgz"], "something half-made is left"


def test_absent_pictures_name_the_command(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"testbed build --world collage.*16 MB"):
        open_pictures("fluent", tmp_path)
    with pytest.raises(InputError, match=r"no rendering named 'notto'.*Did you mean 'noto'"):
        open_pictures("notto", tmp_path)


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"checksum": 1, "files": 3}'])
def test_a_spoilt_list_of_contents_is_refused(content: str, drawn_home: Path, tmp_path: Path) -> None:
    shutil.copytree(drawn_home / "collage" / "noto", tmp_path / "noto")
    (tmp_path / "noto" / CONTENTS).write_text(content)
    with pytest.raises(InputError, match="damaged"):
        open_pictures("noto", tmp_path)
