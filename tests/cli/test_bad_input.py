"""What a person can get wrong: one line each, the right exit code, nothing lost."""

from __future__ import annotations

import errno
import importlib
import os
import resource
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cli.conftest import Run
from tests.support import fastgat

BASE = ("train", "--dataset", "digits", "--method", "baseline", "--epochs", 1, "--no-compile")

USAGE: list[tuple[tuple[object, ...], str]] = [
    (("tran",), "no such command 'tran'; did you mean 'train'?"),
    (("train", "--epoch", 3), "No such option '--epoch'"),
    (("train", "--method", "gta"), "--method: unknown method 'gta'; did you mean 'gat'?"),
    (
        ("train", "--method", "baseline", "--cg", 2),
        "method 'baseline' has no option 'cg' (it belongs to gat, dropout-gat)",
    ),
    (("train", "--cg", -1), "cg must be at least 0, got -1.0"),
    (("train", "--cg", "much"), "cg must be a number such as 0.03 or 8/255, got 'much'"),
    (("train", "--cg", "nan"), "cg must be finite, got 'nan'"),
    (("train", "--method", "fg-linf", "--epsilon", "8/0"), "epsilon must be a number"),
    *[
        (("train", "--method", method, "--epsilon", 8), "epsilon must be at most 1 in linf")
        for method in ("fg-linf", "pgd", "fgsm-rs", "n-fgsm", "free", "trades")
    ],
    (("train", "--method", "pgd", "--select-epsilon", 8), "select_epsilon must be at most 1 in linf"),
    (("train", "--epochs", 0), "epochs must be at least 1, got 0"),
    (("train", "--epochs", "x"), "Invalid value for '--epochs': 'x' is not a valid integer"),
    (("train", "--schedule", "altrnating"), "Invalid value for '--schedule'"),
    (("train", "--schedule", "simultaneous", "--generator-steps", 2), "generator_steps must be 1"),
    (("train", "--amp-dtype", "float15"), "Invalid value for '--amp-dtype'"),
    (("train", "--dataset", "cifar11"), "unknown data set 'cifar11'; did you mean 'cifar10'?"),
    ((*BASE, "--classifier", "resnet"), "unknown classifier 'resnet'"),
    ((*BASE, "--batch-size", 2000), "batch_size 2000 is larger than the training set"),
    ((*BASE, "--device", "tpu"), "device: unknown device 'tpu'"),
    ((*BASE, "--device", "cpu:7"), "there is one CPU, and no 'cpu:7'"),
    ((*BASE, "--cutout", 500), "cutout 500 may leave nothing of images of 32 x 32 pixels"),
    ((*BASE, "--padded-crop", 32), "padded_crop 32 may leave nothing of images of 32 x 32 pixels"),
    (("train", "--method", "baseline", "--generator-lr", 1), "--generator-lr has no effect: method 'baseline' has no"),
    (("train", "--method", "pgd", "--generator-width", 8), "--generator-width has no effect: method 'pgd' has no"),
    (("train", "--convolutions", "stream", "--no-compile"), "--convolutions has no effect: it is for the compiled"),
    ((*BASE, "--device", "cpu", "--tf32"), "--tf32 has no effect: it is for a GPU"),
    ((*BASE, "--device", "cpu", "--no-cuda-graph"), "--no-cuda-graph has no effect: it is for a GPU"),
    (("train", "--device", "cpu", "--convolutions", "stream"), "--convolutions has no effect: it is for a GPU"),
    (("train", "--winograd"), "--winograd has no effect: it is for --channels-last"),
    (("train", "--device", "cuda", "--channels-last", "--winograd"), "--winograd has no effect: it is for a CPU"),
    (("train", "--momentum", 0.9), "--momentum has no effect: it is for --optimizer sgd"),
    (("train", "--nesterov"), "--nesterov has no effect: it is for --optimizer sgd"),
    (("train", "--no-decay-norm"), "--no-decay-norm has no effect: there is no weight decay"),
    (("train", "--lr-decay", 0.5), "--lr-decay has no effect: it is for --lr-schedule multistep"),
    (("train", "--amp-dtype", "float16"), "--amp-dtype has no effect: it is for --amp"),
    (("train", "--method", "pgd", "--batch-norm", "clean"), "--batch-norm has no effect: method 'pgd' trains on one"),
    ((*BASE, "--data-dir", "x"), "--data-dir has no effect: digits are part of fastgat"),
    ((*BASE, "--on-bad-sample", "skip"), "--on-bad-sample has no effect: it is for images in files"),
    ((*BASE, "--loader", "resident", "--workers", 2), "--workers has no effect: the resident loader has none"),
    (("search", "--method", "baseline", "--over", "lr=1,2", "--momentum", 0.5), "--momentum has no effect: it is for"),
    (("reproduce", "table2", "--amp-dtype", "float16"), "--amp-dtype has no effect: it is for --amp"),
    (("train", "--resume", ""), "resume must be auto, a run folder or a checkpoint, got ''"),
    (("train", "--resume", "auto"), "resume 'auto' continues the run in --output: name that folder"),
    (("train", "--seed", 10**20), "seed must be at most"),
    (("train", "--lr", "1" + "0" * 400 + "/1"), "lr must be finite"),
    (("train", "--output", ""), "output must be of type Path, got ''"),
    (("train", "--config", ".."), "Is a directory"),
    (("train", "--config", "nowhere.toml"), "nowhere.toml: No such file or directory"),
    (("train", "--loader", "dalli"), "Invalid value for '--loader'"),
    (("train", "--dataset", "folder:"), "'folder:' does not say where the images are"),
    ((*BASE, "--image-size", 64), "image_size 64: digits has images of 32 x 32 pixels, and no others"),
    (("train", "--cutout", 0), "cutout must be at least 1, got 0"),
    (("train", "--random-resized-crop", 1.5), "random_resized_crop must be at most 1, got 1.5"),
    (("train", "--cg", "1e39"), "cg must be a number that float32 can hold, got '1e39'"),
    (("train", "--weight-decay", "1e-60"), "weight_decay must be a number that float32 can hold"),
    (("train", "--method", "fg-linf", "--epsilon", "1e39"), "epsilon must be a number that float32 can hold"),
    (("train", "--epochs", 10**30), "epochs must be at most 2^63 - 1"),
    (("train", "--epochs", "9" * 5000), "9 ... 9"),
    (("train", "--output", "~nosuchuser/x"), "output: ~nosuchuser/x: there is no such user"),
    (("train", "--resume", "~nosuchuser/x"), "resume: ~nosuchuser/x: there is no such user"),
    (("train", "--config", "/dev/full"), "/dev/full: not a regular file"),
    (("data", "fetch", "folder:x"), "folder:x is a user's own: there is nothing to fetch"),
    (("data", "fetch", "cifar"), "unknown data set 'cifar'; did you mean"),
    (("profile", "--cutout", 32), "cutout 32 may leave nothing of images of 32 x 32 pixels"),
    (("data", "verify", "digits", "--data-dir", "."), "digits are part of fastgat"),
    (("data", "fetch", "digits", "--data-dir", "."), "digits are part of fastgat"),
]

FAILURES: list[tuple[tuple[object, ...], str]] = [
    (("train", "--data-dir", "nowhere"), "nowhere: no such folder (from --data-dir)"),
    (("train", "--dataset", "folder:nowhere"), "nowhere: no such folder"),
    (("train", "--dataset", "webdataset:nowhere.tar"), "nowhere.tar: No such file or directory"),
    (("train", "--dataset", "webdataset:file"), "file: not a whole, uncompressed tar file"),
    (("data", "verify", "folder:nowhere"), "nowhere: no such folder"),
    (("train", "--resume", "nowhere"), "nowhere: No such file or directory"),
    ((*BASE, "--output", "file/run"), "file/run: cannot be made: Not a directory"),
    (("evaluate", "nowhere"), "nowhere: no such checkpoint"),
    (("evaluate", "x" * 300), "File name too long"),
    (("train", "--output", "x" * 300), "File name too long"),
    (("train", "--data-dir", "x" * 300), "File name too long"),
    (("data", "list", "--data-dir", "file/data"), "file/data"),
    (("train", "--resume", "/dev/full"), "/dev/full: not a regular file"),
    (("evaluate", "/dev/zero"), "/dev/zero: no such checkpoint"),
    (("evaluate", "file"), "file: damaged or not a checkpoint"),
    ((*BASE, "--lr", "1e30", "--output", "out"), "became NaN or infinite"),
]


def short(value: object) -> str:
    return value[:40] if isinstance(value, str) else ""


def check(run: Run, arguments: tuple[object, ...], message: str, code: int) -> None:
    Path("file").write_text("not a checkpoint")
    result = run(*arguments)
    assert message in result.err
    assert result.err.startswith("fastgat: error: ")
    assert result.err.count("\n") == 1
    assert result.code == code


@pytest.mark.parametrize(("arguments", "message"), USAGE, ids=short)
def test_usage(run: Run, arguments: tuple[object, ...], message: str) -> None:
    check(run, arguments, message, code=2)


@pytest.mark.parametrize(("arguments", "message"), FAILURES, ids=short)
def test_failure(run: Run, arguments: tuple[object, ...], message: str) -> None:
    check(run, arguments, message, code=1)


@pytest.mark.parametrize("command", ["evaluate nowhere", "export nowhere", "search"])
def test_what_runs_in_one_process(command: str) -> None:
    arguments = [sys.executable, "-m", "fastgat", *command.split()]
    done = subprocess.run(arguments, env={**os.environ, "WORLD_SIZE": "2"}, capture_output=True, text=True)
    assert done.returncode == 2
    assert "not by torchrun" in done.stderr
    assert done.stderr.count("\n") == 1


def test_a_gpu_that_is_not_there(run: Run) -> None:
    import torch

    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    check(run, (*BASE, "--device", "cuda"), "device 'cuda' asked for", code=1)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("epochz = 3", "unknown key 'epochz'; did you mean 'epochs'?"),
        ("[method]\nname = 'gat'\ncgg = 1", "method 'gat' has no option 'cgg'; did you mean 'cg'?"),
        ("[optimizer]\nlearning_rate = 1", "unknown key 'optimizer.learning_rate'; known: optimizer, lr, generator_lr"),
        ("method = { name = 3 }", "method.name must be of type str, got 3"),
        ("data = 'cifar10'", "data must be a table, got 'cifar10'"),
        ("epochs = 2.5", "epochs must be of type int, got 2.5"),
        ("seed = true", "seed must be of type int, got True"),
        ("[precision]\namp = 1", "amp must be of type bool, got 1"),
        ("[precision]\namp_dtype = 'float'", "amp_dtype: unknown value 'float'; did you mean 'float16'?"),
        ("= 3", "not TOML"),
        ("epochs = " + "[" * 10_000 + "]" * 10_000, "not TOML: nested too deeply"),
        ("epochs = " + "[" * 300 + "]" * 300, "epochs must be of type int, got [[["),
        ("epochs = " + "9" * 5000, "not TOML: Exceeds the limit"),
        ("epochs = 0x" + "f" * 5000, "epochs must be at most 2^63 - 1, got a value"),
        ("epochs = " + "9" * 30, "epochs must be at most 2^63 - 1"),
        ('[data]\ndataset = "folder:\\u0000"', "dataset must not have a null character"),
        ("method = { name = 'gat', cg = 1e39 }", "cg must be a number that float32 can hold"),
    ],
    ids=short,
)
def test_a_configuration_file(run: Run, text: str, message: str) -> None:
    Path("settings.toml").write_text(text)
    check(run, ("train", "--config", "settings.toml"), f"settings.toml: {message}", code=2)


@pytest.mark.parametrize(("encoding", "code"), [("utf-8", 0), ("utf-8-sig", 0), ("utf-16", 2)])
def test_a_configuration_file_in_another_encoding(run: Run, encoding: str, code: int) -> None:
    Path("settings.toml").write_text('[data]\ndataset = "folder:Fotos é"\n', encoding)
    result = run("train", "--config", "settings.toml", "--print-config")
    assert result.code == code
    assert ("folder:Fotos é" in result.out) if code == 0 else ("it is in UTF-16; save it in UTF-8" in result.err)


def test_a_path_that_is_not_utf_8(run: Run) -> None:
    place = "out\udcff"  # as Python has the byte 0xff in a path
    assert run(*BASE, "--batch-size", 256, "--output", place).code == 0
    assert run("export", place).code == 0
    assert run("evaluate", place, "--clean").code == 0
    assert run("train", "--config", f"{place}/config.toml", "--print-config").code == 0
    check(run, ("evaluate", f"{place}/nothing"), "nothing: no such checkpoint", code=1)


def test_a_run_is_not_written_over(run: Run) -> None:
    assert run(*BASE, "--batch-size", 256, "--output", "out").code == 0
    before = {path.name: path.read_bytes() for path in Path("out").iterdir()}
    check(run, (*BASE, "--output", "out"), "out already holds a run: continue it with --resume auto", code=2)
    check(run, ("train", "--resume", "auto", "--output", "out", "--lr", 0.5), "made with optimizer.lr = 0.001", code=1)
    assert {path.name: path.read_bytes() for path in Path("out").iterdir()} == before


def test_a_disk_that_fills_up(run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The checkpoint of the start is written, that of the epoch is not."""
    from fastgat.engine import run_checkpoints

    original = run_checkpoints.save_checkpoint  # type: ignore[attr-defined]  # patched where it is used
    calls: list[str] = []

    def full(path: Path, *content: object) -> None:
        calls.append(path.name)
        if len(calls) > 1:
            monkeypatch.setattr(os, "fsync", lambda _: (_ for _ in ()).throw(OSError(errno.ENOSPC, "No space left")))
        original(path, *content)  # type: ignore[arg-type]  # passed on as they come

    monkeypatch.setattr(run_checkpoints, "save_checkpoint", full)
    arguments = (*BASE, "--batch-size", 256, "--output", "out")
    check(run, arguments, "best-accuracy.safetensors: cannot be written: No space left", code=1)
    assert sorted(path.name for path in (tmp_path / "out").iterdir() if "safetensors" in path.name) == [
        "last.safetensors"
    ]


@pytest.mark.slow
def test_a_file_size_limit_of_the_system(tmp_path: Path) -> None:
    """The same with a limit that the operating system enforces, in a process of its own."""
    result = subprocess.run(
        [sys.executable, "-m", "fastgat", *map(str, BASE), "--output", "out"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000)),
    )
    assert result.returncode == 1
    assert result.stderr == f"fastgat: error: {Path('out/last.safetensors')}: cannot be written: File too large\n"


@pytest.mark.slow
def test_a_traceback_is_never_shown(tmp_path: Path) -> None:
    result = fastgat("train", "--dataset", "cifar10", "--data-dir", tmp_path, cwd=tmp_path)
    assert result.returncode == 1
    assert "Traceback" not in result.stderr
    assert result.stderr.count("\n") == 1


STRANGER = """
from pathlib import Path
from tests.support import SmallClassifier
Path("imported").touch()
build = SmallClassifier
"""


def test_code_that_a_file_names_runs_only_where_the_user_names_it_too(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from fastgat import load_classifier
    from fastgat.errors import CheckpointError

    def ran() -> bool:
        """Whether the factory's module was imported since the last call."""
        sys.modules.pop("stranger", None)
        marker = Path("imported")
        return marker.exists() and not marker.unlink()  # type: ignore[func-returns-value]  # None

    monkeypatch.setattr(sys, "path", [*sys.path])
    Path("stranger.py").write_text(STRANGER)
    named = ("--classifier", "stranger:build")
    assert run(*BASE, *named, "--batch-size", 256, "--output", "out").code == 0
    assert ran()
    evaluate, resume = ("evaluate", "out", "--clean"), ("train", "--resume", "auto", "--output", "out", "--epochs", 1)
    commands = (
        (evaluate, 1),
        (("export", "out"), 1),
        (resume, 2),
        (("train", "--config", "out/config.toml", "--output", "new", "--dry-run"), 2),
    )
    for command, code in commands:
        check(run, command, "asks to import and call 'stranger:build'", code)
        check(run, (*command, "--classifier", "stranger:other") if code == 1 else command, "stranger:build", code)
        assert not ran()
        assert run(*command, *named).code == 0
        assert ran()
    with pytest.raises(CheckpointError, match="classifier='stranger:build'"):
        load_classifier("out")
    assert not ran()
    load_classifier("out", classifier="stranger:build")
    assert ran()


def test_ctrl_c_within_an_import_ends_the_process(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the system: torch and numpy make other errors of an exception in the middle of their import."""
    handlers: list[object] = []
    real = importlib.import_module

    def imported(name: str) -> object:
        handlers.append(signal.getsignal(signal.SIGINT))
        return real(name)

    monkeypatch.setattr(importlib, "import_module", imported)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell ignores it for what runs behind it
    try:
        assert run("recipes").code == 0
        assert handlers[0] == signal.SIG_DFL
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, before)
