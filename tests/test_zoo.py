"""Files from paths, URLs, Google Drive and the list of published checkpoints."""

import hashlib
import pickle
import sys
import threading
import types
import zipfile
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest
import torch
from cli import call
from safetensors.torch import save as safetensors
from test_strangers import Trap, rezipped, saved

from models.zoo import ZOO, fetch
from utils.errors import VPNsError

TENSORS = {"a": torch.arange(3000.0)}
DATA, OTHER = saved(TENSORS), saved({"b": torch.ones(3)})
LEGACY = saved(TENSORS, _use_new_zipfile_serialization=False)
DIGEST = hashlib.sha256(DATA).hexdigest()
NAME = "resnet18_cifar100_s60"
LINK = f"https://drive.google.com/file/d/{ZOO[NAME].drive}/view"


class Server(BaseHTTPRequestHandler):
    """Answers /any/name.pth; the first `cuts` replies stop at half. The length can be left out."""

    body, cuts, hits, says_length = DATA, 0, 0, True

    def do_GET(self):
        kind = type(self)
        kind.hits += 1
        self.send_response(404 if "absent" in self.path else 200)
        if kind.says_length:
            self.send_header("Content-Length", str(len(kind.body)))
        self.end_headers()
        whole = kind.hits > kind.cuts
        self.wfile.write(kind.body if whole else kind.body[: len(kind.body) // 2])

    def log_message(self, *args):
        pass


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("VPNS_CACHE", str(tmp_path / "cache"))
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path / "cache"


@pytest.fixture
def server(cache):
    """The handler class, to set its answers, and the address."""
    handler = type("Handler", (Server,), {})
    httpd = HTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=httpd.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield handler, f"http://127.0.0.1:{httpd.server_port}"
    httpd.shutdown()
    thread.join()
    httpd.server_close()


@pytest.fixture
def gdown(cache, monkeypatch):
    """A gdown that writes `content`, and remembers what it was asked for."""
    module = types.SimpleNamespace(content=DATA, asked=[])

    def download(url, output, quiet):
        module.asked.append(url)
        if module.content is None:
            return None
        with open(output, "wb") as file:
            file.write(module.content)
        return output

    module.download = download
    monkeypatch.setitem(sys.modules, "gdown", module)
    return module


def refused(source, words):
    with pytest.raises(VPNsError, match=words) as error:
        fetch(source)
    assert "\n" not in str(error.value)
    return str(error.value)


def left_in(cache):
    return [path.name for path in cache.iterdir()]


def test_a_local_path_is_returned_as_it_is(tmp_path):
    (tmp_path / "a.pth").write_bytes(DATA)
    assert fetch(str(tmp_path / "a.pth")) == tmp_path / "a.pth"


def test_a_missing_path_is_named(tmp_path):
    refused(str(tmp_path / "a.pth"), "a.pth is not a file$")


def test_a_misspelt_name_gets_the_nearest_one():
    refused("resnet18_cifar100_60", f"did you mean {NAME}")


def test_a_file_url_is_the_local_file(tmp_path):
    path = tmp_path / "with space.pth"
    path.write_bytes(DATA)
    assert fetch(path.as_uri()) == path


def test_other_schemes_are_refused():
    refused("ftp://host/a.pth", "only file://, http://, https:// and hf://")


def test_a_url_is_downloaded_once(server, cache):
    handler, address = server
    first = fetch(f"{address}/a.pth")
    second = fetch(f"{address}/a.pth")
    assert first == second and first.parent == cache and first.read_bytes() == DATA
    assert handler.hits == 1 and first.suffix == ".pth"


def test_a_download_has_its_digest_beside_it(server):
    path = fetch(f"{server[1]}/a.pth")
    assert path.with_name(path.name + ".sha256").read_text() == f"{DIGEST}  {path.name}\n"


def test_urls_with_the_same_end_do_not_collide(server):
    handler, address = server
    first = fetch(f"{address}/one/a.pth")
    handler.body = OTHER
    second = fetch(f"{address}/two/a.pth")
    third = fetch(f"{address}/one/a.pth?version=2")
    assert [first.read_bytes(), second.read_bytes(), third.read_bytes()] == [
        DATA, OTHER, OTHER
    ]


def test_a_cut_download_leaves_nothing_and_the_next_try_succeeds(server, cache):
    handler, address = server
    handler.cuts = 1
    half, all_ = len(DATA) // 2, len(DATA)
    message = refused(f"{address}/a.pth", f"cut off: {half} of {all_} bytes")
    assert left_in(cache) == [] and f"{address}/a.pth" in message
    assert fetch(f"{address}/a.pth").read_bytes() == DATA


PAGE, CUT = "a web page came", "cut off: a zip file without its end came"
INSTEAD = {
    "page": (b"\n <!DOCTYPE html><title>Sign in</title>", PAGE),
    "page in capitals": (b"<HTML></HTML>", PAGE),
    "page of XML": (b'<?xml version="1.0"?><!DOCTYPE html><html></html>', PAGE),
    "page under a comment": (b"<!-- c --><html>", PAGE),
    "page after a byte order mark": (b"\xef\xbb\xbf\r\n<!DOCTYPE html>", PAGE),
    "part of a page": (b"<head><title>Quota</title>", PAGE),
    "page in UTF-16": ("<!DOCTYPE html>".encode("utf-16"), "what came is damaged"),
    "JSON": (b'{"error":"quota"}', "a text came in its place: '{\"error\":\"quota\"}'"),
    "text": ("Zu viele. Später!\n".encode(), r"a text came in its place: 'Zu viele. Später!\\n'"),
    "nothing": (b"", "it came empty"),
    "half a zip": (DATA[: len(DATA) // 2], CUT),
    "zip without its last byte": (DATA[:-1], CUT),
    "zip with a wrong byte": (
        DATA.replace(b"\0\0\x80?", b"\0\0\x81?"), "what came is damaged .checksum mismatch"
    ),
    "half a legacy file": (LEGACY[: len(LEGACY) // 2], "what came is damaged .cut off"),
    "beginning of a legacy file": (LEGACY[:9], "what came is damaged"),
    "noise": (bytes(range(1, 256)) * 40, "what came is damaged"),
}  # fmt: skip


@pytest.mark.parametrize("case", INSTEAD)
def test_what_is_no_whole_file_leaves_nothing_and_the_next_try_succeeds(server, cache, case):
    handler, address = server
    handler.body, words = INSTEAD[case]
    handler.says_length = False
    message = refused(f"{address}/a.pth", f"^cannot fetch {address}/a.pth \\({words}")
    assert left_in(cache) == [] and ".fetch-" not in message and "download it yours" in message
    handler.body = DATA
    assert fetch(f"{address}/a.pth").read_bytes() == DATA


@pytest.mark.parametrize("share", [0, 1, 4, 7.999])
def test_a_cut_download_of_safetensors_leaves_nothing(server, cache, share):
    handler, address = server
    handler.body, handler.says_length = safetensors(TENSORS), False
    assert fetch(f"{address}/whole.safetensors").read_bytes() == handler.body
    handler.body = handler.body[: int(share / 8 * len(handler.body))]
    before = left_in(cache)
    refused(f"{address}/a.safetensors", "what came is damaged|it came empty")
    assert left_in(cache) == before


def test_a_whole_legacy_file_without_a_length_is_taken(server):
    handler, address = server
    handler.body, handler.says_length = LEGACY, False
    assert fetch(f"{address}/a.pth").read_bytes() == LEGACY


def test_an_address_that_ends_in_no_name_of_weights_is_refused_unasked(server, cache):
    handler, address = server
    refused(f"{address}/download?file=a.pth", "download it yourself and give its path")
    assert handler.hits == 0 and not cache.exists()


def test_a_download_that_would_run_code_is_refused_and_runs_none(server, cache, tmp_path):
    handler, address = server
    handler.body = pickle.dumps(Trap(tmp_path / "marker"))
    done = call("--evaluate", f"{address}/evil.pth", "--dataset", "digits")
    assert done.code == 1 and not (tmp_path / "marker").exists()
    last = done.err.splitlines()[-1]
    assert last.startswith(f"error: {cache}/") and "would call posix.system" in last
    assert left_in(cache) == [] and ".fetch-" not in last and "download it yourself" not in last


REFUSED = {
    "packed": (rezipped(method=zipfile.ZIP_DEFLATED), "its records are packed"),
    "list": (saved([1, 2]), "holds a list, not a dict of tensors"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_whole_file_that_is_not_read_is_refused_in_the_readers_words(server, cache, case):
    handler, address = server
    handler.body, words = REFUSED[case]
    message = refused(f"{address}/a.pth", f"{words}.*; nothing is kept of {address}/a.pth$")
    assert message.startswith(f"{cache}/") and left_in(cache) == []


def test_a_server_error_says_how_to_do_it_by_hand(server, cache):
    words = f"HTTP Error 404.*download it yourself, save it as {cache}"
    refused(f"{server[1]}/absent.pth", words)
    assert left_in(cache) == []


def test_a_cache_that_cannot_be_made_is_one_line(server, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("VPNS_CACHE", str(tmp_path / "file"))
    refused(f"{server[1]}/a.pth", "cannot fetch")


def test_the_nine_published_files_are_listed():
    rows = {(row.dataset, row.density) for row in ZOO.values()}
    datasets = ("cifar10", "cifar100", "tiny_imagenet")
    assert rows == {(name, density) for name in datasets for density in (0.6, 0.4, 0.3)}
    assert len({row.drive for row in ZOO.values()}) == 9
    assert (ZOO[NAME].dataset, ZOO[NAME].density) == ("cifar100", 0.4)


@pytest.mark.parametrize(
    "source",
    [
        NAME,
        f"{LINK}?usp=sharing",
        f"https://drive.google.com/uc?export=download&id={ZOO[NAME].drive}",
        f"https://drive.google.com/open?id={ZOO[NAME].drive}",
    ],
)
def test_a_published_file_comes_from_drive_by_name_or_link(gdown, cache, source):
    assert fetch(source) == cache / f"{NAME}.pth"
    assert (cache / f"{NAME}.pth").read_bytes() == DATA
    assert gdown.asked == [f"https://drive.google.com/uc?id={ZOO[NAME].drive}"]


def test_a_file_put_into_the_cache_by_hand_is_used(gdown, cache):
    cache.mkdir()
    (cache / f"{NAME}.pth").write_bytes(OTHER)
    assert fetch(NAME).read_bytes() == OTHER and gdown.asked == []


@pytest.mark.parametrize("damage", [lambda data: data[:-9], lambda data: data.replace(b"b", b"c")])
def test_a_file_damaged_in_the_cache_says_to_delete_it(server, damage):
    path = fetch(f"{server[1]}/a.pth")
    path.write_bytes(damage(path.read_bytes()))
    message = refused(f"{server[1]}/a.pth", "delete it .*, and it is fetched again from http")
    assert message.startswith(f"checksum mismatch: {path}") and "get it again" not in message


def test_a_damaged_file_put_into_the_cache_by_hand_says_to_delete_it(gdown, cache):
    cache.mkdir()
    (cache / f"{NAME}.pth").write_bytes(OTHER[:-9])
    message = refused(NAME, "delete it .*, and it is fetched again from https")
    assert message.startswith(f"{cache}/{NAME}.pth is damaged")


def test_another_drive_file_is_kept_under_its_id(gdown, cache):
    assert fetch("https://drive.google.com/file/d/abc-_1/view") == cache / "drive-abc-_1.pth"


def test_a_drive_folder_is_refused(gdown):
    refused("https://drive.google.com/drive/u/0/my-drive", "not the link of one file")


@pytest.mark.parametrize(
    ("content", "words"), [(None, "Drive refused"), (b"<html>quota", "a web page came")]
)
def test_a_refusal_of_drive_names_the_link_and_leaves_nothing(gdown, cache, content, words):
    gdown.content = content
    message = refused(NAME, words)
    assert LINK in message and str(cache / f"{NAME}.pth") in message and left_in(cache) == []


def test_an_error_inside_gdown_is_one_line(gdown, monkeypatch):
    def download(**options):
        raise RuntimeError("quota\nexceeded")

    monkeypatch.setattr(gdown, "download", download)
    refused(NAME, "quota")


def test_without_gdown_the_way_out_is_named(cache, monkeypatch):
    monkeypatch.setitem(sys.modules, "gdown", None)
    message = refused(NAME, "pip install gdown")
    assert LINK in message and str(cache / f"{NAME}.pth") in message
