"""The Hugging Face hub: fetching, remembering and pushing, against a hub on this machine."""

import hashlib
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import huggingface_hub
import pytest
from cli import call, run
from huggingface_hub import constants

from models import hub
from models.zoo import fetch
from utils.errors import UsageError, VPNsError

QUICK = ["--density_list", "0.1", "--eval_every", 0, "--input_size", 8, "--output_size", 8]


class Hub(BaseHTTPRequestHandler):
    """Answers /OWNER/REPO/resolve/REVISION/FILE as the hub does."""

    files: dict[str, bytes] = {}

    def do_HEAD(self) -> None:
        self._answer(with_body=False)

    def do_GET(self) -> None:
        self._answer(with_body=True)

    def _answer(self, with_body: bool) -> None:
        body = self.files.get(self.path)
        self.send_response(404 if body is None else 200)
        if body is None:
            self.send_header("X-Error-Code", "EntryNotFound")
        else:
            digest = hashlib.sha256(body).hexdigest()
            self.send_header("ETag", f'"{digest}"')
            self.send_header("X-Repo-Commit", digest[:40])
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if with_body and body:
            self.wfile.write(body)

    def log_message(self, *args) -> None:
        pass


@pytest.fixture
def files(tmp_path, monkeypatch):
    """What the hub has, by path; its caches lie in a folder of the test."""
    handler = type("Handler", (Hub,), {"files": {}})
    httpd = HTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=httpd.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    address = f"http://127.0.0.1:{httpd.server_port}"
    monkeypatch.setenv("VPNS_CACHE", str(tmp_path / "cache"))
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    download = huggingface_hub.hf_hub_download

    def from_here(*words, **options):
        return download(*words, **options, endpoint=address, cache_dir=tmp_path / "hub")

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", from_here)
    yield handler.files
    httpd.shutdown()
    thread.join()
    httpd.server_close()


def test_an_address_is_fetched_and_measured(files, tmp_path: Path) -> None:
    done = run(tmp_path / "run", *QUICK)
    model = (done.folder / "d0.1/model.safetensors").read_bytes()
    files["/me/sparse/resolve/main/model.safetensors"] = model
    measured = call("--evaluate", "hf://me/sparse", "--device", "cpu").result
    assert measured["clean"] == done.result["rows"][0]["clean"]


def test_weights_and_masks_may_lie_there(files, tmp_path: Path) -> None:
    done = run(tmp_path / "run", *QUICK)
    model = (done.folder / "d0.1/model.safetensors").read_bytes()
    files["/me/sparse/resolve/v1/masks/m.safetensors"] = model
    words = ["--init_mask", "hf://me/sparse@v1/masks/m.safetensors", "--init_from"]
    again = run(tmp_path / "again", *QUICK, *words)
    assert again.code == 0 and again.result["rows"][0]["kept"] == done.result["rows"][0]["kept"]


def test_another_file_under_the_same_address_is_refused(files) -> None:
    address = "/me/sparse/resolve/main/w.pth"
    files[address] = b"one"
    assert fetch("hf://me/sparse/w.pth").read_bytes() == b"one"
    files[address] = b"two"
    with pytest.raises(VPNsError, match="is not the file of the first time .*name a revision"):
        fetch("hf://me/sparse/w.pth")


@pytest.mark.parametrize("source", ["hf://me", "hf://", "hf://a/b/../../c.pth", "hf://a/b@x y"])
def test_what_is_no_address_is_refused(source: str) -> None:
    with pytest.raises(UsageError, match="is no address"):
        hub.from_hub(source)


def test_a_file_that_is_not_there_is_one_line(files) -> None:
    failed = call("--evaluate", "hf://me/nothing")
    assert failed.code == 1 and failed.error.startswith("cannot get hf://me/nothing (")


def test_a_missing_package_is_named(monkeypatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "huggingface_hub", None)
    with pytest.raises(UsageError, match="pip install huggingface_hub"):
        hub.from_hub("hf://me/sparse")


def test_an_export_is_pushed_with_model_card_and_labels(tmp_path: Path, monkeypatch) -> None:
    done, pushed = run(tmp_path / "run", *QUICK), {}
    monkeypatch.setattr(huggingface_hub, "create_repo", lambda repo, **options: None)
    monkeypatch.setattr("program.export.has_onnx", lambda: False)  # which takes long

    def upload(repo_id, folder_path):
        pushed[repo_id] = {path.name for path in Path(folder_path).iterdir()}
        return f"https://huggingface.co/{repo_id}"

    monkeypatch.setattr(huggingface_hub, "upload_folder", upload)
    words = ["--export", done.folder / "d0.1/model.safetensors", "--to", tmp_path / "out"]
    exported = call(*words, "--push_to", "me/sparse").result
    assert exported["pushed"] == "https://huggingface.co/me/sparse"
    assert {"model.safetensors", "README.md", "labels.txt"} <= pushed["me/sparse"]


def test_the_zoo_is_listed_with_what_is_known() -> None:
    done = call("--zoo")
    assert done.code == 0 and len(done.out.splitlines()) == 10
    assert "resnet18_cifar100_s60  resnet18  cifar100  60 %  83.16  not fetched yet" in done.out
