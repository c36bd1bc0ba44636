"""Generate src/enforcer/{v1,ratelimit} and src/meter/v1 from the protos: `make proto`.

A proto's path is its Python path: proto/enforcer/v1/x.proto becomes enforcer.v1.x_pb2, .x_pb2_grpc
and their typed stubs. The result is committed; `--check` (part of `make lint`) writes nothing and
fails with a list of what differs.
"""

from __future__ import annotations

import argparse
import re
import sys
import sysconfig
import tempfile
from importlib.resources import files
from pathlib import Path

from grpc_tools import protoc

PROTO = Path(__file__).resolve().parent
SRC = PROTO.parent / "src"
PACKAGES = ("enforcer/ratelimit", "enforcer/v1", "meter/v1")
SERVICE = re.compile(r"^service ", re.MULTILINE)
PLUGIN_OPTIONS = {"mypy": "quiet:", "mypy_grpc": "quiet:"}
PACKAGE_INIT = '"""Generated from proto/{package} by proto/generate.py; do not edit."""\n'


def generate(target: Path) -> None:
    """Write the generated packages below `target`; raise SystemExit when protoc refuses."""
    for package in PACKAGES:
        protos = sorted((PROTO / package).glob("*.proto"))
        if not protos:
            continue
        folder = target / package
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "__init__.py").write_text(PACKAGE_INIT.format(package=package))
        run_protoc(protos, ("python", "mypy"), target)
        services = [proto for proto in protos if SERVICE.search(proto.read_text())]
        if services:
            run_protoc(services, ("grpc_python", "mypy_grpc"), target)


def run_protoc(protos: list[Path], outputs: tuple[str, ...], target: Path) -> None:
    """Run protoc over one package's files, one `--X_out` per name in `outputs`."""
    scripts = Path(sysconfig.get_path("scripts"))
    status = protoc.main(
        [
            "protoc",
            f"--proto_path={PROTO}",
            f"--proto_path={files('grpc_tools') / '_proto'}",
            f"--plugin=protoc-gen-mypy={scripts / 'protoc-gen-mypy'}",
            f"--plugin=protoc-gen-mypy_grpc={scripts / 'protoc-gen-mypy_grpc'}",
            *(f"--{name}_out={PLUGIN_OPTIONS.get(name, '')}{target}" for name in outputs),
            *map(str, protos),
        ]
    )
    if status:
        raise SystemExit(status)


def contents(root: Path) -> dict[str, str]:
    """Return path → text of every source file in the generated packages below `root`."""
    return {
        str(path.relative_to(root)): path.read_text()
        for package in PACKAGES
        for path in sorted((root / package).glob("*"))
        if path.suffix in {".py", ".pyi"}
    }


def differences(committed: dict[str, str], fresh: dict[str, str]) -> list[str]:
    """Return one line per file that is missing, stale or left over."""
    lines = [f"missing  src/{path}" for path in sorted(fresh.keys() - committed.keys())]
    lines += [f"leftover src/{path}" for path in sorted(committed.keys() - fresh.keys())]
    lines += [
        f"stale    src/{path}"
        for path in sorted(fresh.keys() & committed.keys())
        if fresh[path] != committed[path]
    ]
    return lines


def main() -> int:
    """Generate, or with --check only compare."""
    parser = argparse.ArgumentParser(description="Generate the protos' code in src.")
    parser.add_argument("--check", action="store_true", help="write nothing; fail if stale")
    check = parser.parse_args().check
    with tempfile.TemporaryDirectory() as folder:
        generate(Path(folder))
        fresh = contents(Path(folder))
    committed = contents(SRC)
    if check:
        stale = differences(committed, fresh)
        if stale:
            print("Generated code does not match proto/ (run `make proto`):")
            print("\n".join(f"  {line}" for line in stale))
        else:
            print(f"Generated code is current ({len(fresh)} files).")
        return 1 if stale else 0
    for path in committed.keys() - fresh.keys():
        (SRC / path).unlink()
    for path, text in fresh.items():
        if committed.get(path) != text:
            (SRC / path).parent.mkdir(parents=True, exist_ok=True)
            (SRC / path).write_text(text)
    print(f"Generated {len(fresh)} files.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
