"""Hostile inputs by class, from a seed: what is made of files, settings and folders that nobody should have written.

`python -m tests.fuzz.fuzzer 1000` tries a thousand of each class and prints the table.
"""

from __future__ import annotations

import contextlib
import functools
import io
import json
import os
import random
import re
import shutil
import socket
import sys
import tempfile
import time
import traceback
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import torch

from fastgat.cli import main
from fastgat.cli.options import settings
from fastgat.config import TrainConfig
from fastgat.engine.checkpoint import BLANK, CHECKSUM, HEADER
from fastgat.errors import FastgatError
from fastgat.options import value_type

ROOT = Path(__file__).parents[2]
SECONDS = 20
"""Longer is a hang."""
DEEP = 100_000
VALUES = (
    *(
        "null",
        "true",
        "-1",
        "0",
        "1",
        "1.5",
        "-0.0",
        "1e39",
        "1e-60",
        "1e400",
        "NaN",
        "-Infinity",
        str(2**63),
        str(10**30),
    ),
    *(
        "1" * 5000,
        '""',
        '"x"',
        '"\\u0000"',
        '"\\ud800"',
        '"~nosuchuser/x"',
        '"os:abort"',
        '"%s"' % ("x" * 5000),
        '"../.."',
    ),
    *("[]", "{}", "[[]]", "[1, 2, 3]", '{"a": 1}', '{"name": null}', "[" * 500 + "]" * 500),
    "[" * DEEP + "]" * DEEP,
    '{"a":' * DEEP + "1" + "}" * DEEP,
)
"""JSON texts that take another value's place."""


DEVICES = ("/dev/full", "/dev/zero", "/dev/null", "/proc/self/mem")


class Case(NamedTuple):
    """One hostile input: what was done, and what takes it."""

    name: str
    run: Callable[[], object]


class Outcome(NamedTuple):
    """What came of a case: "one line", "accepted", or anything else."""

    kind: str
    text: str


def outcome(case: Case) -> Outcome:
    began = time.perf_counter()
    try:
        case.run()
        kind, text = "accepted", ""
    except FastgatError as error:
        kind, text = "one line", str(error)
    except BaseException:  # noqa: BLE001  # whatever it is, it is what is looked for
        kind, text = "traceback", traceback.format_exc()
    if kind == "one line" and len(text.splitlines()) != 1:
        kind = "several lines"
    if time.perf_counter() - began > SECONDS:
        kind = "hang"
    return Outcome(kind, text)


def command(*arguments: object) -> None:
    """Run `fastgat ARGUMENTS` here; raises FastgatError with what it said where it failed as it should."""
    err = io.StringIO()
    with (
        mock.patch.object(sys, "argv", ["fastgat", *map(str, arguments)]),
        contextlib.redirect_stdout(io.StringIO()),
        contextlib.redirect_stderr(err),
    ):
        try:
            main()
        except SystemExit as stopped:
            if stopped.code:
                raise FastgatError(err.getvalue().removesuffix("\n")) from None


class Fuzzer:
    """Makes the cases of each class in `folder`; `run` is the folder of a small run, which is copied."""

    def __init__(self, folder: Path, run: Path, seed: int = 0) -> None:
        self.folder, self.original, self.source = folder, run, random.Random(seed)
        self.raw = (run / "last.safetensors").read_bytes()
        self.classes: dict[str, Callable[[], Case]] = {
            "option": self.option,
            "TOML": self.toml,
            "TOML's bytes": self.toml_bytes,
            "bit of a checkpoint": self.bit,
            "value in a checkpoint's header": self.header_value,
            "safetensors' header": self.outer_value,
            "file that is none": self.special_file,
            "run folder": self.run_folder,
            "reproduce folder": self.reproduce_folder,
        }

    def cases(self, kind: str, count: int) -> Iterator[Case]:
        return (self.classes[kind]() for _ in range(count))

    def option(self) -> Case:
        """An option of `train` with a number or a text that it should not have."""
        setting = self.source.choice(
            [each for each in settings() if value_type(each.owner, each.field.name)[0] is not bool]
        )
        value = self.source.choice([json.loads(v) if v.startswith('"') else v for v in VALUES if len(v) < 6000])
        value = value.replace("\0", "").replace("\ud800", "\udcff")
        owner: Any = setting.owner
        method = ["--method", owner.name] if setting.table == "method" else []
        return Case(
            f"{setting.flag} {value[:60]}", lambda: command("train", *method, setting.flag, value, "--print-config")
        )

    def toml(self) -> Case:
        """A value of a configuration file."""
        values = TrainConfig().to_dict()
        place = self.source.choice(list(_places(values)))
        value = self.source.choice(
            [
                *(
                    "0x" + "f" * 9000,
                    "9" * 5000,
                    "1e39",
                    "inf",
                    "nan",
                    "-1",
                    "1.5",
                    "true",
                    '"x"',
                    '"\\u0000"',
                    "[]",
                    "{}",
                ),
                *(
                    "[" * DEEP + "]" * DEEP,
                    "[" * 300 + "]" * 300,
                    "{a=" * 300 + "1" + "}" * 300,
                    "1979-05-27",
                    "07:32:00",
                ),
                *('"~nosuchuser/x"', '"os:abort"', '"%s"' % ("x" * 5000), "2" + "0" * 30, "{ name = 1 }"),
            ]
        )
        text = _toml(replaced(values, place, "@HOLE@")).replace('"@HOLE@"', value)
        path = self.folder / "settings.toml"
        path.write_text(text)
        return Case(f"{_dotted(place)} = {value[:60]}", lambda: command("train", "--config", path, "--print-config"))

    def toml_bytes(self) -> Case:
        """A configuration file in another encoding, or with some of its bytes changed."""
        text = 'epochs = 3\n[data]\ndataset = "folder:photos"\n'
        encodings = ("utf-8", "utf-8-sig", "utf-16", "utf-32", "latin-1")
        raw = bytearray(
            text.replace("photos", self.source.choice(["photos", "Fotos é", "写真"])).encode(
                self.source.choice(encodings), "replace"
            )
        )
        for _ in range(self.source.randrange(4)):
            raw[self.source.randrange(len(raw))] = self.source.randrange(256)
        path = self.folder / "settings.toml"
        path.write_bytes(raw)
        return Case(repr(bytes(raw)), lambda: command("train", "--config", path, "--print-config"))

    def bit(self) -> Case:
        """A checkpoint with one bit flipped, or cut, which must never be accepted."""
        end = 8 + int.from_bytes(self.raw[:8], "little")
        place = self.source.randrange(end if self.source.random() < 0.8 else len(self.raw))
        number = self.source.randrange(8)
        raw = bytearray(self.raw)
        raw[place] ^= 1 << number
        if self.source.random() < 0.1:
            raw = raw[:place]
        path = self.folder / "bit.safetensors"
        path.write_bytes(raw)

        def run() -> None:
            self.evaluate(path)
            raise AssertionError("a damaged file was accepted")

        return Case(f"bit {number} of byte {place}", run)

    def header_value(self) -> Case:
        """A value of fastgat's header changed or left out, with a checksum that is right."""
        header = self.header()
        place = self.source.choice(
            [place for place in _places(header) if place[0] != "random" or self.source.random() < 0.1]
        )
        if self.source.random() < 0.2:
            value, text = "(gone)", json.dumps(replaced(header, place, None, gone=True))
        else:
            value = self.source.choice(VALUES)
            text = json.dumps(replaced(header, place, "@HOLE@")).replace('"@HOLE@"', value)
        path = self.folder / "header.safetensors"
        path.write_bytes(self.forged(text))
        taker = self.source.choice([self.evaluate, self.resume, self.export])
        return Case(f"{taker.__name__}: {_dotted(place)} = {value[:60]}", lambda: taker(path))

    def outer_value(self) -> Case:
        """A value of safetensors' header changed or left out, with a checksum that is right."""
        outer = json.loads(self.raw[8 : 8 + int.from_bytes(self.raw[:8], "little")])
        place = self.source.choice([place for place in _places(outer) if place[-1] != HEADER])
        values = (
            *VALUES,
            '"F8_E8M0"',
            '"F4"',
            '"F64"',
            '"C64"',
            '"BOOL"',
            "[0]",
            f"[{2**62}, {2**62}]",
            f"[0, {2**62}]",
        )
        value = self.source.choice(values)
        text = json.dumps(replaced(outer, place, "@HOLE@")).replace('"@HOLE@"', value)
        path = self.folder / "outer.safetensors"
        path.write_bytes(self.packed(text))
        return Case(f"{_dotted(place)} = {value[:60]}", lambda: self.evaluate(path))

    def special_file(self) -> Case:
        """A pipe, device, folder or link where a file should be."""
        path = self.folder / "special"
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        path.unlink(missing_ok=True)
        kinds: dict[str, Callable[[], object]] = {
            "pipe": lambda: os.mkfifo(path),
            "socket": lambda: _socket(path),
            "folder": path.mkdir,
            "loop": lambda: path.symlink_to(path.name),
            "broken": lambda: path.symlink_to("nothing"),
            "sparse": functools.partial(_sparse, path),
            **{device: functools.partial(path.symlink_to, device) for device in DEVICES},
        }
        kind = self.source.choice(list(kinds))
        kinds[kind]()
        takers: dict[str, Callable[[], object]] = {
            "--config": lambda: command("train", "--config", path, "--print-config"),
            "--resume": lambda: command("train", "--resume", path, "--print-config"),
            "evaluate": lambda: command("evaluate", "--clean", path),
            "export": lambda: command("export", path),
        }
        places = ("last.safetensors", "best.safetensors", "metrics.jsonl")
        taker = self.source.choice([*takers, *places])
        if taker in takers:
            return Case(f"{taker} {kind}", takers[taker])
        run = self.copied()
        (run / taker).unlink()
        (run / taker).symlink_to(path)
        return Case(f"{taker} in a run: {kind}", lambda: self.go_on(run))

    def run_folder(self) -> Case:
        """A value or a byte of a run folder's text files."""
        run = self.copied()
        path = run / self.source.choice(["metrics.jsonl", "config.toml", "summary.json", "environment.json"])
        if self.source.random() < 0.5:
            value = self.source.choice(VALUES)
            path.write_text(value + "\n" + path.read_text())
        else:
            raw = bytearray(path.read_bytes())
            for _ in range(5):
                raw[self.source.randrange(len(raw))] = self.source.randrange(256)
            value = "bytes"
            path.write_bytes(raw)
        if path.name == "config.toml":
            return Case(f"config.toml {value[:60]}", lambda: command("train", "--config", path, "--print-config"))
        return Case(f"{path.name} {value[:60]}", lambda: self.go_on(run))

    def reproduce_folder(self) -> Case:
        """A value of what `reproduce` keeps."""
        folder = self.folder / "reproduce"
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(ROOT / "tests/experiments/fixtures/reproduce-0.1.0/folder", folder)
        texts = [*folder.rglob("*.json"), *folder.rglob("*.toml"), *folder.rglob("*.jsonl")]
        path = self.source.choice([each for each in sorted(texts) if "-gat-" not in str(each)])
        value = self.source.choice(VALUES)
        if path.suffix == ".json":
            content = json.loads(path.read_text())
            place = self.source.choice(list(_places(content)))
            path.write_text(json.dumps(replaced(content, place, "@HOLE@")).replace('"@HOLE@"', value))
            where = f"{path.name} {_dotted(place)}"
        else:
            path.write_text(value + "\n" + path.read_text())
            where = path.name
        return Case(f"{where} = {value[:60]}", lambda: command(*REPRODUCE, "--out", folder))

    def header(self) -> dict[str, Any]:
        outer = json.loads(self.raw[8 : 8 + int.from_bytes(self.raw[:8], "little")])
        header: dict[str, Any] = json.loads(outer["__metadata__"][HEADER])
        return header

    def forged(self, header: str) -> bytes:
        """The checkpoint with another header of fastgat's."""
        outer = json.loads(self.raw[8 : 8 + int.from_bytes(self.raw[:8], "little")])
        outer["__metadata__"][HEADER] = header
        return self.packed(json.dumps(outer))

    def packed(self, outer: str) -> bytes:
        """The checkpoint with another header of safetensors', and the checksum that belongs to it."""
        text = re.sub(rf'"{CHECKSUM}": ?"[0-9a-f]{{8}}"', f'"{CHECKSUM}":"{BLANK}"', outer, count=1).encode()
        text += b" " * (-len(text) % 8)
        raw = len(text).to_bytes(8, "little") + text + self.raw[8 + int.from_bytes(self.raw[:8], "little") :]
        blank, right = (f'"{CHECKSUM}":"{value}"'.encode() for value in (BLANK, f"{zlib.crc32(raw):08x}"))
        return raw.replace(blank, right, 1)

    def copied(self) -> Path:
        run = self.folder / "run"
        shutil.rmtree(run, ignore_errors=True)
        shutil.copytree(self.original, run)
        return run

    @staticmethod
    def evaluate(path: Path) -> None:
        from fastgat import load_classifier
        from tests.engine.small import Small

        load_classifier(path, classifier=Small())

    @staticmethod
    def export(path: Path) -> None:
        from fastgat.export import export
        from tests.engine.small import Small

        export(path, output=path.with_name("exported"), classifier=Small())

    @staticmethod
    def resume(path: Path) -> None:
        """Go on with a run of one epoch more, without compiling it."""
        from tests.engine.small import config, trainer

        command("train", "--resume", path, "--print-config")
        loop = trainer(config(path.parent / "resumed", resume=str(path))).prepare()
        for player in (0, 1):
            next(loop.train_loader.stream(player, loop.position.step))

    @staticmethod
    def go_on(run: Path) -> None:
        from tests.engine.small import config, trainer

        trainer(config(run, resume="auto")).fit()


REPRODUCE = (
    *("reproduce", "table2", "figure3", "--quick", "--seeds", 1, "--epochs", 30, "--batch-size", 32),
    *("--grid", "gat=1", "--classifier", "tests.experiments.tiny:build", "--generator-width", 4),
    *("--lr", 0.01, "--deterministic", "--collect-only"),
)


def _sparse(path: Path) -> None:
    """A file of four terabytes that takes no space."""
    path.touch()
    os.truncate(path, 1 << 42)


def _socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as made:
        made.bind(str(path))


def _places(value: Any, before: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The keys and indices that lead to each value in nested ones; of long lists, of the first."""
    pairs = value.items() if isinstance(value, dict) else enumerate(value[:3]) if isinstance(value, list) else ()
    for key, each in pairs:
        yield (*before, key)
        yield from _places(each, (*before, key))


def _dotted(place: tuple[Any, ...]) -> str:
    return ".".join(map(str, place))


def replaced(value: Any, place: tuple[Any, ...], new: Any, *, gone: bool = False) -> Any:
    """`value` with another one at `place`, or with none there."""
    copy = json.loads(json.dumps(value))
    inner = copy
    for key in place[:-1]:
        inner = inner[key]
    if gone:
        del inner[place[-1]]
    else:
        inner[place[-1]] = new
    return copy


def _toml(values: dict[str, Any]) -> str:
    import tomli_w

    return tomli_w.dumps(values)


def small_run(folder: Path) -> Path:
    """A run of two epochs that the classes are made from."""
    from tests.engine.small import config, trainer

    trainer(config(folder, epochs=2)).fit()
    return folder


def table(folder: Path, count: int, seed: int = 0) -> tuple[dict[str, Counter[str]], list[str]]:
    """By class how often each outcome came, and what was neither one line nor rightly accepted."""
    fuzzer = Fuzzer(folder, small_run(folder / "original"), seed)
    counts: dict[str, Counter[str]] = {}
    wrong = []
    for kind in fuzzer.classes:
        counts[kind] = Counter()
        for case in fuzzer.cases(kind, count):
            result = outcome(case)
            counts[kind][result.kind] += 1
            if result.kind not in ("one line", "accepted"):
                wrong.append(f"{kind}: {case.name}: {result.kind}\n{result.text[-1500:]}")
    return counts, wrong


def shown_table(counts: dict[str, Counter[str]]) -> str:
    lines = [f"{'class':32}{'tried':>8}{'one line':>10}{'accepted':>10}{'else':>6}"]
    for kind, each in counts.items():
        rest = each.total() - each["one line"] - each["accepted"]
        lines.append(f"{kind:32}{each.total():8}{each['one line']:10}{each['accepted']:10}{rest:6}")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as place:
        counts, wrong = table(Path(place), int(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 0)
    sys.stdout.write("\n\n".join(wrong) + shown_table(counts))
