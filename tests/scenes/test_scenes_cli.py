"""The command line: what it writes, and that wrong input is one line on stderr and exit code 2."""

import json

import numpy as np
import pytest
from PIL import Image

from common.scenes import builder
from common.scenes.__main__ import main
from common.scenes.reader import truth
from common.scenes.render import render
from common.scenes.scene import draw_scene


@pytest.fixture
def few(monkeypatch, tmp_path):
    monkeypatch.setattr(builder, "SPLITS", {"train": 6, "test": 5, "held_out": 4})
    monkeypatch.setenv("GUIDEBOOK_DATA", str(tmp_path / "data"))


def test_show_writes_a_sheet_and_makes_its_folder(tmp_path, capsys):
    out = tmp_path / "new" / "sheet.png"
    assert main(["show", "--num", "10", "--size", "32", "--out", str(out)]) == 0
    assert Image.open(out).size == (8 * 140 + 12, 2 * 188 + 12)
    assert capsys.readouterr().out.count("\n") == 1


@pytest.mark.parametrize("size", (32, 64, 96))
def test_read_json_tells_the_scene_in_a_file(tmp_path, capsys, size):
    scene = draw_scene(np.random.default_rng(4))
    image = Image.fromarray(render([scene], 64 if size == 64 else 32)[0])
    image.resize((size, size), Image.NEAREST).save(tmp_path / "a.png")
    Image.new("RGB", (32, 32)).save(tmp_path / "b.png")
    assert main(["read", "--json", str(tmp_path / "a.png"), str(tmp_path / "b.png")]) == 0
    a, b = json.loads(capsys.readouterr().out)
    want = truth(scene)
    assert a["file"].endswith("a.png") and not b["valid"] and b["objects"] == []
    assert {k: a[k] for k in ("valid", "background", "style")} == {
        k: want[k] for k in ("valid", "background", "style")
    }
    for got, o in zip(a["objects"], want["objects"], strict=True):
        assert all(got[k] == o[k] for k in ("shape", "colour", "size", "place"))


def test_read_prints_a_sentence_for_each_file(tmp_path, capsys):
    Image.new("RGB", (32, 32)).save(tmp_path / "b.png")
    assert main(["read", str(tmp_path / "b.png")]) == 0
    assert capsys.readouterr().out.endswith("b.png: no scene\n")


def test_export_writes_pictures_and_captions_and_never_twice(tmp_path, capsys, few):
    out = tmp_path / "out"
    assert main(["export", "--out", str(out), "--num", "3", "--size", "32"]) == 0
    records = [json.loads(line) for line in (out / "captions.jsonl").read_text().splitlines()]
    assert [r["file"] for r in records] == ["00000.png", "00001.png", "00002.png"]
    assert (out / "captions.txt").read_text().splitlines() == [r["caption"] for r in records]
    assert Image.open(out / "00002.png").size == (32, 32)
    capsys.readouterr()
    assert main(["export", "--out", str(out), "--num", "3"]) == 2
    assert "not an empty folder" in capsys.readouterr().err


def test_check_prints_a_table(capsys):
    assert main(["check", "--num", "20"]) == 0
    assert "shuffled patches" in capsys.readouterr().out


def test_wrong_input_is_one_line_and_exit_code_2(tmp_path, capsys, few):
    (tmp_path / "text.png").write_text("no picture")
    Image.new("RGB", (32, 64)).save(tmp_path / "tall.png")
    Image.new("RGB", (48, 48)).save(tmp_path / "odd.png")
    for argv in (
        ["read", str(tmp_path / "missing.png")],
        ["read", str(tmp_path)],
        ["read", str(tmp_path / "text.png")],
        ["read", str(tmp_path / "tall.png")],
        ["read", str(tmp_path / "odd.png")],
        ["show", "--num", "1", "--out", str(tmp_path / "text.png" / "x.png")],
        ["show", "--num", "1", "--out", str(tmp_path / "x.unknown")],
        ["show", "--seed", "-1"],
        ["export", "--out", str(tmp_path / "text.png")],
        ["export", "--out", str(tmp_path / "new"), "--num", "99"],
    ):
        assert main(argv) == 2, argv
        captured = capsys.readouterr()
        assert captured.err.count("\n") == 1 and captured.out == "", argv
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("argv", (["show", "--num", "0"], ["show", "--size", "48"], ["fly"], []))
def test_arguments_argparse_refuses_exit_with_2(argv, capsys):
    with pytest.raises(SystemExit) as stop:
        main(argv)
    assert stop.value.code == 2
