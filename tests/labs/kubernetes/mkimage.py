"""Make an image of one static busybox without a container tool: OUT.tar NAME BUSYBOX [ENTRYPOINT...]."""

from __future__ import annotations

import hashlib
import io
import json
import sys
import tarfile
from pathlib import Path

APPLETS = [
    "sh",
    "sleep",
    "echo",
    "cat",
    "true",
    "false",
    "mkdir",
    "touch",
    "rm",
    "mv",
    "ls",
    "dd",
    "head",
    "tail",
    "seq",
    "date",
    "kill",
    "sync",
    "test",
    "expr",
]


def layer(busybox: bytes) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        for name in ("bin", "tmp", "etc", "proc", "sys", "dev"):
            entry = tarfile.TarInfo(name)
            entry.type, entry.mode = tarfile.DIRTYPE, 0o755
            tar.addfile(entry)
        for name, data, mode in (
            ("bin/busybox", busybox, 0o755),
            ("etc/passwd", b"root:x:0:0::/:/bin/sh\n", 0o644),
        ):
            entry = tarfile.TarInfo(name)
            entry.size, entry.mode = len(data), mode
            tar.addfile(entry, io.BytesIO(data))
        for applet in APPLETS:
            entry = tarfile.TarInfo(f"bin/{applet}")
            entry.type, entry.linkname = tarfile.SYMTYPE, "busybox"
            tar.addfile(entry)
    return out.getvalue()


def main(out: str, name: str, busybox: str, *entrypoint: str) -> None:
    files = layer(Path(busybox).read_bytes())
    config = {
        "architecture": "amd64",
        "os": "linux",
        "config": {
            "Env": ["PATH=/bin"],
            **({"Entrypoint": list(entrypoint)} if entrypoint else {"Cmd": ["/bin/sh"]}),
        },
        "rootfs": {"type": "layers", "diff_ids": [f"sha256:{hashlib.sha256(files).hexdigest()}"]},
    }
    text = json.dumps(config).encode()
    config_name = f"{hashlib.sha256(text).hexdigest()}.json"
    manifest = json.dumps([{"Config": config_name, "RepoTags": [name], "Layers": ["layer.tar"]}]).encode()
    with tarfile.open(out, "w") as tar:
        for member, data in (("layer.tar", files), (config_name, text), ("manifest.json", manifest)):
            entry = tarfile.TarInfo(member)
            entry.size = len(data)
            tar.addfile(entry, io.BytesIO(data))


if __name__ == "__main__":
    main(*sys.argv[1:])
