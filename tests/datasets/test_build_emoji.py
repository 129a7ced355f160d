import base64
import hashlib
import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "data" / "build_emoji.py"
SHIPPED = ROOT / "data" / "emoji"
CACHE = ROOT / ".cache" / "npm"


@pytest.fixture(scope="module")
def script():
    pytest.importorskip("resvg_py", reason='needs pip install "mmlab[data]"')
    spec = importlib.util.spec_from_file_location("build_emoji", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    sys.modules["build_emoji"] = module
    spec.loader.exec_module(module)
    yield module
    del sys.modules["build_emoji"]


def run_script(*arguments, **environment):
    return subprocess.run(
        [sys.executable, SCRIPT, *map(str, arguments)],
        capture_output=True,
        text=True,
        env={**os.environ, **environment},
    )


def digests(folder):
    return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in folder.iterdir()}


# The shipped set.


def test_shipped_files_are_those_of_the_manifest():
    manifest = json.loads((SHIPPED / "manifest.json").read_text())
    found = {p.name: p for p in SHIPPED.iterdir() if p.name != "manifest.json"}
    assert set(found) == set(manifest["files"])
    for name, expected in manifest["files"].items():
        data = found[name].read_bytes()
        assert len(data) == expected["bytes"]
        assert hashlib.sha256(data).hexdigest() == expected["sha256"]


def test_the_set_is_small():
    assert sum(p.stat().st_size for p in SHIPPED.iterdir()) < 7_500_000


def test_shipped_set_came_from_the_pinned_packages(script):
    manifest = json.loads((SHIPPED / "manifest.json").read_text())
    pinned = {p.name: {"version": p.version, "sha512": p.sha512} for p in script.PACKAGES}
    assert manifest["packages"] == pinned


def test_notice_names_every_package_with_version_and_licence(script):
    notice = (ROOT / "NOTICE").read_text()
    for package in script.PACKAGES:
        assert f"{package.name} {package.version}" in notice
        assert package.license in notice


@pytest.mark.slow
def test_two_builds_are_equal_byte_for_byte(script, tmp_path):
    missing = [p.name for p in script.PACKAGES if not (CACHE / p.file_name).exists()]
    if missing:
        pytest.skip(f"{missing[0]} is not in .cache/npm; run `make data` once to fetch it")
    for name in ("a", "b"):
        # PATH without npm: a full cache must be enough. One run has other worker processes.
        result = run_script(
            "--out", tmp_path / name, "--cache", CACHE, "--workers", 1 + (name == "b"), PATH=""
        )
        assert result.returncode == 0, result.stderr
    assert digests(tmp_path / "a") == digests(tmp_path / "b")
    built, shipped = (
        json.loads((folder / "manifest.json").read_text()) for folder in (tmp_path / "a", SHIPPED)
    )
    assert digests(tmp_path / "a")["concepts.json"] == digests(SHIPPED)["concepts.json"]
    if built["built_with"] == shipped["built_with"]:
        assert digests(tmp_path / "a") == digests(SHIPPED)


# Failures.


def test_another_archive_than_the_pinned_one_is_refused(script, tmp_path):
    package = script.VENDORS["noto"]
    (tmp_path / package.file_name).write_bytes(b"something else")
    with pytest.raises(script.BuildError, match=r"@iconify-json/noto@1\.2\.9 is not the pinned"):
        script.fetch(package, tmp_path)


def fake_npm(folder, body):
    npm = folder / "npm"
    npm.write_text(f"#!/bin/sh\n{body}\n")
    npm.chmod(0o755)
    return f"{folder}:/usr/bin:/bin"


@pytest.mark.skipif(os.name == "nt", reason="the stand-in for npm is a shell script")
def test_a_wrong_download_never_enters_the_cache(script, tmp_path, monkeypatch):
    package = script.SUBGROUPS
    monkeypatch.setenv("PATH", fake_npm(tmp_path, f"echo wrong > {package.file_name}"))
    with pytest.raises(script.BuildError, match=r"emoji\.json@16\.0\.0 is not the pinned archive"):
        script.fetch(package, tmp_path / "cache")
    assert not list((tmp_path / "cache").iterdir())


@pytest.mark.skipif(os.name == "nt", reason="the stand-in for npm is a shell script")
def test_a_right_download_enters_the_cache_once(script, tmp_path, monkeypatch):
    sha512 = base64.b64encode(hashlib.sha512(b"right\n").digest()).decode()
    package = script.Package("@some/thing", "1.0.0", "MIT", sha512)
    monkeypatch.setenv("PATH", fake_npm(tmp_path, "echo right > some-thing-1.0.0.tgz"))
    archive = script.fetch(package, tmp_path / "cache")
    assert archive.read_bytes() == b"right\n"
    monkeypatch.setenv("PATH", "")
    assert script.fetch(package, tmp_path / "cache") == archive


@pytest.mark.skipif(os.name == "nt", reason="the stand-in for npm is a shell script")
def test_failing_npm_is_one_sentence_and_leaves_nothing(tmp_path):
    path = fake_npm(tmp_path, 'echo "npm error network timeout" >&2; exit 1')
    result = run_script("--out", tmp_path / "out", "--cache", tmp_path / "cache", PATH=path)
    assert result.returncode == 1
    assert result.stderr == (
        "error: npm could not fetch @iconify-json/noto@1.2.9: network timeout\n"
    )
    assert not (tmp_path / "out").exists()
    assert {p.name for p in tmp_path.iterdir()} == {"npm", "cache"}


def test_missing_npm_is_one_sentence(tmp_path):
    result = run_script("--out", tmp_path / "out", "--cache", tmp_path / "cache", PATH="")
    assert result.returncode == 1
    assert result.stderr.startswith("error: npm is not installed")


def test_a_folder_with_other_things_is_never_replaced(tmp_path):
    (tmp_path / "thesis.txt").write_text("years of work")
    result = run_script("--out", tmp_path, PATH="")
    assert result.returncode == 1
    assert "holds 'thesis.txt', which is no part of an emoji set" in result.stderr
    assert (tmp_path / "thesis.txt").read_text() == "years of work"


def test_a_failed_swap_leaves_the_old_set(script, tmp_path, monkeypatch):
    new, out = tmp_path / "aside" / "new", tmp_path / "out"
    new.mkdir(parents=True)
    out.mkdir()
    (out / "concepts.json").write_text("old")
    rename = os.rename

    def full_disk(source, target):
        if Path(source) == new:
            raise OSError("no space left")
        rename(source, target)

    monkeypatch.setattr(os, "rename", full_disk)
    with pytest.raises(OSError, match="no space left"):
        script.replace_folder(new, out)
    assert (out / "concepts.json").read_text() == "old"


# The pieces.


def test_keys_agree_however_code_points_are_written(script):
    assert script.normalize(["0031", "FE0F", "20e3"]) == script.emoji_key("1️⃣") == "31-20e3"


def test_families_join_genders_and_directions_only(script):
    emoji = ["🧑‍🚀", "👨‍🚀", "👩‍🚀", "🚀", "👨", "👩", "🚶", "🚶‍♂️", "🚶‍♀️‍➡️", "➡️"]
    family = {e: script.family(script.emoji_key(e)) for e in emoji}
    assert family["🧑‍🚀"] == family["👨‍🚀"] == family["👩‍🚀"]
    assert family["🚶"] == family["🚶‍♂️"] == family["🚶‍♀️‍➡️"]
    assert len({family["👨"], family["👩"], family["➡️"]}) == 3


def concepts(script, keys, group):
    return [script.Concept(key, "", "", group, "", {}, {}) for key in keys]


def test_held_out_families_are_whole_and_a_tenth_of_each_group(script):
    people = [f"{who}-200d-{i:x}" for who in ("1f468", "1f469") for i in range(100)]
    table = concepts(script, people, "people")
    table += concepts(script, [f"{i:x}" for i in range(500, 600)], "things")
    held_out = script.held_out_keys(table)
    assert len(held_out) == 30
    assert sum(key in held_out for key in people) == 20
    partner = {"1f468": "1f469", "1f469": "1f468"}
    for key in held_out & set(people):
        assert partner[key[:5]] + key[5:] in held_out


def test_the_choice_of_held_out_concepts_does_not_depend_on_their_order(script):
    table = concepts(script, [f"{i:x}" for i in range(300)], "things")
    assert script.held_out_keys(table) == script.held_out_keys(table[::-1])


def test_aliases_are_followed_and_flipped(script):
    icons = {
        "icons": {"left": {"body": '<rect width="5" height="10"/>'}},
        "aliases": {
            "right": {"parent": "left", "hFlip": True},
            "turned": {"parent": "left", "rotate": 1},
            "lost": {"parent": "nowhere"},
        },
        "width": 10,
        "height": 10,
    }
    left, right = (script.render(script.find_drawing(icons, name)) for name in ("left", "right"))
    assert left[:, :24].max() == 0 and left[:, 24:].min() == 255
    assert np.array_equal(left[:, ::-1], right)
    assert script.find_drawing(icons, "turned") is None
    assert script.find_drawing(icons, "lost") is None


@pytest.mark.parametrize(("width", "height"), [(10, 20), (20, 10)])
def test_drawings_that_are_not_square_stay_in_the_middle(script, width, height):
    drawing = script.Drawing(f'<rect width="{width}" height="{height}"/>', width, height)
    image = script.render(drawing)
    assert image.shape == (48, 48, 3)
    assert (image == 0).mean() == pytest.approx(0.5)
    assert np.array_equal(image, image[::-1, ::-1])


def test_sheets_put_images_in_rows_from_the_top_left(script):
    images = [np.full((48, 48, 3), i, np.uint8) for i in range(43)]
    sheet = np.asarray(script.contact_sheet(images))
    assert sheet.shape == (96, 40 * 48, 3)
    assert sheet[0, ::48, 0].tolist() == list(range(40))
    assert sheet[48, ::48, 0].tolist() == [40, 41, 42] + [255] * 37
