"""The Hugging Face hub: `hf://OWNER/REPO[@REVISION][/FILE]`, and folders that are pushed there."""

import hashlib
import re
from pathlib import Path
from typing import Any

from utils.downloads import own_cache
from utils.errors import UsageError, VPNsError, message_of
from utils.files import atomic_write, leads_outside, read_small, sha256_file

PREFIX = "hf://"
ADDRESS = re.compile(r"hf://([\w.-]+/[\w.-]+)(?:@([\w.-]+))?(?:/([\w./-]+))?")
FILE = "model.safetensors"


def from_hub(source: str) -> Path:
    """The local file of an address, fetched into the hub's cache if need be.

    Its SHA-256 is remembered when it comes for the first time. Raises UsageError for what is no
    address, VPNsError for a file that cannot be had, or is another one than then.
    """
    match = ADDRESS.fullmatch(source)
    if not match or leads_outside(match[3] or ""):
        raise UsageError(f"{source} is no address: hf://OWNER/REPO, hf://OWNER/REPO@REVISION/FILE")
    repo, revision, file = match.groups()
    package = _hub()
    try:
        path = Path(package.hf_hub_download(repo, file or FILE, revision=revision))
    except Exception as error:  # the package has errors of several libraries
        raise VPNsError(f"cannot get {source} ({message_of(error)[:200]}): see that it is there, "
                        "public, or that HF_TOKEN is set") from error
    _remember(source, path)
    return path


def push(folder: Path, repo: str) -> str:
    """Put the files of a folder into a repository of the hub, made if need be; its address.

    Raises VPNsError when the hub refuses.
    """
    package = _hub()
    try:
        package.create_repo(repo, exist_ok=True)
        return str(package.upload_folder(repo_id=repo, folder_path=folder))
    except Exception as error:
        raise VPNsError(f"cannot push to {repo} ({message_of(error)[:200]}): log in with "
                        "`hf auth login`, or set HF_TOKEN") from error


def _hub() -> Any:
    try:
        import huggingface_hub
    except ImportError as error:
        raise UsageError("the hub needs a package: pip install huggingface_hub") from error
    return huggingface_hub


def _remember(source: str, path: Path) -> None:
    sums = own_cache() / "hub" / f"{hashlib.sha256(source.encode()).hexdigest()[:16]}.sha256"
    digest = sha256_file(path)
    if not sums.is_file():
        sums.parent.mkdir(parents=True, exist_ok=True)
        atomic_write(sums, f"{digest}  {source}\n")
    elif (before := read_small(sums).decode(errors="replace").split()[:1]) != [digest]:
        raise VPNsError(f"{source} is not the file of the first time (SHA-256 {digest[:12]}..., "
                        f"then {''.join(before)[:12]}...): name a revision, or remove {sums}")
