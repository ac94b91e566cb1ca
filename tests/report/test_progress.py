import fcntl
import os
import pty
import struct
import subprocess
import sys
import termios

import pytest

from mnist_flax.report import progress
from tests.runs import ROOT, python

SCRIPT = """
from mnist_flax.report.progress import Progress
progress = Progress(2, 1000)
for epoch in (1, 2):
    progress.start_epoch(epoch)
    progress.update(500, {"loss": 0.5, "accuracy": 0.75})
    progress.update(1000, {"loss": 0.25, "accuracy": 0.875})
    progress.finish_epoch({
        "epoch": epoch, "step": epoch * 10, "train/loss": 0.5, "train/accuracy": 0.9,
        "test/loss": 0.25, "test/accuracy": 0.95, "seconds": 2.0, "images_per_second": 500.0,
    })
progress.close()
progress.line("the end")
"""
LINES = [
    "epoch 1/2  train loss 0.5000 accuracy 90.00%  test loss 0.2500 accuracy 95.00%  "
    "2.0 s  500 images/s  0:00:00 left",
    "epoch 2/2  train loss 0.5000 accuracy 90.00%  test loss 0.2500 accuracy 95.00%  "
    "2.0 s  500 images/s  0:00:00 left",
    "the end",
]


def test_plain_lines_without_a_terminal():
    done = python("-c", SCRIPT)
    assert done.stdout.splitlines() == LINES
    assert done.stderr == ""


def test_a_bar_on_a_terminal():
    main, terminal = pty.openpty()
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 30, 140, 0, 0))
    process = subprocess.Popen(
        [sys.executable, "-c", SCRIPT],
        cwd=ROOT,
        stdout=terminal,
        stderr=terminal,
    )
    os.close(terminal)
    output = b""
    while True:
        try:
            output += os.read(main, 4096)
        except OSError:  # the other end of the terminal is closed
            break
    assert process.wait() == 0
    text = output.decode()
    for shown in ("epoch 1/2  50%", "epoch 2/2 100%", "loss 0.2500, accuracy 87.50%", "images/s"):
        assert shown in text
    # Every line is printed whole and alone, although the bar is redrawn in between.
    visible = [line.strip("\r").split("\r")[-1].strip() for line in text.split("\n")]
    assert [line for line in visible if line in LINES] == LINES


def test_a_line_a_minute_within_an_epoch(monkeypatch, capsys):
    shown = progress.Progress(1, 100)
    shown.start_epoch(1)
    shown.update(10, {"loss": 1.0})
    assert capsys.readouterr().out == ""
    clock = progress.time.monotonic()
    monkeypatch.setattr(progress.time, "monotonic", lambda: clock + 61)
    shown.update(20, {"loss": 1.0, "accuracy": 0.5, "grad_norm": 2})
    assert capsys.readouterr().out == (
        "epoch 1/1  20%  loss 1.0000, accuracy 50.00%, grad_norm 2.0000\n"
    )
    shown.update(30, {"loss": 1.0})
    assert capsys.readouterr().out == ""


def test_time_left_counts_all_that_an_epoch_took(monkeypatch, capsys):
    clock = 1000.0
    monkeypatch.setattr(progress.time, "monotonic", lambda: clock)
    shown = progress.Progress(3, 100)
    clock += 500  # compiling, which must not count in the estimate
    shown.start_epoch(1)
    clock += 40  # 30 s of training and 10 s of evaluation
    record = {"epoch": 1, "seconds": 30.0, "images_per_second": 3.3}
    shown.finish_epoch(record)
    assert capsys.readouterr().out.endswith("30.0 s  3 images/s  0:01:20 left\n")


def test_every_metric_of_every_split_is_shown(capsys):
    record = {"epoch": 1, "seconds": 1.0, "images_per_second": 1.0, "train/grad_norm": 3.5}
    for split in ("train", "validation", "test"):
        record |= {f"{split}/loss": 0.5, f"{split}/accuracy": 0.5}
    shown = progress.Progress(10, 1)
    shown.start_epoch(1)
    shown.finish_epoch(record)
    line = capsys.readouterr().out
    assert line.startswith(
        "epoch  1/10  train grad_norm 3.5000 loss 0.5000 accuracy 50.00%  "
        "validation loss 0.5000 accuracy 50.00%  test loss 0.5000 accuracy 50.00%  1.0 s  "
    )


@pytest.mark.parametrize("stream", ["full", "closed pipe"])
def test_output_that_nobody_can_read_ends_nothing(stream, tmp_path):
    script = f"{SCRIPT}\nopen({str(tmp_path / 'end')!r}, 'w')"
    if stream == "full":
        out = os.open("/dev/full", os.O_WRONLY)
    else:
        reader, out = os.pipe()
        os.close(reader)
    done = subprocess.run(
        [sys.executable, "-c", script], stdout=out, stderr=subprocess.PIPE, cwd=ROOT
    )
    os.close(out)
    assert (done.returncode, done.stderr) == (0, b"")
    assert (tmp_path / "end").exists()
