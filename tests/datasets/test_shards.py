import io
import json
import math
import os
import subprocess
import sys
import tarfile
import threading
from collections import Counter
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import chain, islice, pairwise
from pathlib import Path

import pytest
import torch
from PIL import Image

from mmlab.datasets import shards as module
from mmlab.datasets.example import Caption, Example
from mmlab.datasets.shards import (
    ShardError,
    ShardLoader,
    ShardOptions,
    ShardStream,
    SkipReport,
    list_shards,
    write_shards,
)


def example(number, num_captions=1, size=16):
    generator = torch.Generator().manual_seed(number)
    image = torch.randint(0, 256, (3, size, size), dtype=torch.uint8, generator=generator)
    captions = tuple(Caption(f"picture {number}, {i}") for i in range(num_captions))
    return Example(f"e.{number}", image, "thing", captions, source="test", license="CC0")


def written(folder, count=30, per_shard=5, **options):
    return write_shards(map(example, range(count)), folder, max_samples=per_shard, **options)


def ids(examples):
    return [e.id for e in examples]


def png(number=0):
    buffer = io.BytesIO()
    Image.fromarray(example(number).image.permute(1, 2, 0).numpy()).save(buffer, "PNG")
    return buffer.getvalue()


def tar(path, *members):
    """A tar written by hand: pairs of name and bytes."""
    with tarfile.open(path, "w") as archive:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return path


def good(key, caption=b"a caption"):
    return [(f"{key}.png", png()), (f"{key}.txt", caption)]


ONCE = ShardOptions(epochs=1, shuffle=False)
MIXED = ShardOptions(seed=3, buffer=7)


# ----------------------------------------------------------------------------------------- writing


def test_what_is_written_is_read_again(tmp_path):
    examples = [example(n, num_captions=3) for n in range(7)]
    paths = write_shards(examples, tmp_path, max_samples=3)
    assert [p.name for p in paths] == [f"shard-0000{i}.tar" for i in range(3)]
    read = list(ShardStream(paths, ONCE))
    for before, after in zip(examples, read, strict=True):
        assert torch.equal(before.image, after.image)
        assert set(before.captions) == set(after.captions)
        for name in ("id", "label", "source", "license"):
            assert getattr(before, name) == getattr(after, name)


def test_the_same_examples_give_the_same_bytes(tmp_path):
    for one, two in zip(written(tmp_path / "a"), written(tmp_path / "b"), strict=True):
        assert one.read_bytes() == two.read_bytes()


def test_a_shard_ends_before_it_is_too_large(tmp_path):
    # A sample takes about 3,500 bytes.
    limit = 10_000
    paths = written(tmp_path, per_shard=100, max_bytes=limit)
    assert len(paths) > 1
    for path in paths:
        with tarfile.open(path) as archive:
            sizes = [512 + 512 * -(-member.size // 512) for member in archive]
        assert sum(sizes) <= limit
    assert len(list(ShardStream(paths, ONCE))) == 30


def test_a_sample_above_the_limit_has_a_shard_for_itself(tmp_path):
    assert len(written(tmp_path, count=3, max_bytes=1)) == 3


def test_a_shard_is_whole_or_not_there(tmp_path, monkeypatch):
    def broken():
        yield from map(example, range(7))
        raise RuntimeError("the source broke")

    with pytest.raises(RuntimeError, match="the source broke"):
        write_shards(broken(), tmp_path / "a", max_samples=5)
    assert [p.name for p in (tmp_path / "a").iterdir()] == ["shard-00000.tar"]

    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(module.os, "fsync", full)
    with pytest.raises(ShardError, match="No space left"):
        written(tmp_path / "b")
    assert not list((tmp_path / "b").iterdir())


def test_shards_are_not_overwritten(tmp_path):
    written(tmp_path)
    with pytest.raises(ShardError, match="already has shards"):
        written(tmp_path)
    assert written(tmp_path, prefix="more")


@pytest.mark.parametrize("limit", ["max_samples", "max_bytes"])
def test_limits_are_positive(tmp_path, limit):
    with pytest.raises(ShardError, match=f"{limit} must be at least 1, got 0"):
        write_shards([], tmp_path, **{limit: 0})


def test_webdataset_reads_ours_and_we_read_its(tmp_path):
    webdataset = pytest.importorskip("webdataset")
    paths = written(tmp_path, count=4, per_shard=4)
    theirs = list(webdataset.WebDataset(str(paths[0]), shardshuffle=False))
    assert [sample["txt"] for sample in theirs] == [f"picture {n}, 0".encode() for n in range(4)]
    with webdataset.TarWriter(str(tmp_path / "theirs.tar")) as writer:
        for n in range(3):
            sample = {"png": png(n), "txt": f"caption {n}", "json": {"url": f"http://x/{n}"}}
            writer.write({"__key__": f"{n:09d}", **sample})
    read = list(ShardStream(tmp_path / "theirs.tar", ONCE))
    assert [e.captions[0].text for e in read] == ["caption 0", "caption 1", "caption 2"]
    assert [e.source for e in read] == [f"http://x/{n}" for n in range(3)]
    assert torch.equal(read[2].image, example(2).image)


# ------------------------------------------------------------------------------------ finding them


def test_braces_and_stars_list_shards(tmp_path):
    paths = list(map(str, written(tmp_path)))
    assert list_shards(tmp_path / "shard-{00000..00005}.tar") == paths
    assert list_shards(f"{tmp_path}/shard-0000{{1,3}}.tar") == [paths[1], paths[3]]
    assert list_shards(f"{tmp_path}/*.tar") == paths
    addresses = list_shards("https://host/{a,b}-{08..11}.tar")
    assert len(addresses) == 8 and addresses[2] == "https://host/a-10.tar"


@pytest.mark.parametrize(
    ("shards", "message"),
    [
        ([], "no shards"),
        ("{0..9}/*.tar", "stands for none"),
        ("{3..1}.tar", "stands for none"),
        ("none-{0..2}.tar", r"3 of 3 shards are missing; the first is 'none-0.tar'"),
        ("s3://bucket/x.tar", "got s3://"),
        ("pipe://x", "got pipe://"),
        (["http://h/a.tar", "http://h/{a,b}.tar"], "more than once"),
    ],
)
def test_unusable_lists_are_one_clear_error(shards, message):
    with pytest.raises(ShardError, match=message):
        ShardStream(shards)


# -------------------------------------------------------------------------------- what is skipped


def test_what_cannot_be_used_is_skipped_counted_and_named(tmp_path):
    cut = tmp_path / "b.tar"
    # The image is there, its caption is cut off: the last sample must not come out half.
    tar(cut, *good("c1"), *good("c2"))
    with tarfile.open(cut) as archive:
        cut_at = archive.getmember("c2.txt").offset
    cut.write_bytes(cut.read_bytes()[:cut_at])
    paths = [
        tar(
            tmp_path / "a.tar",
            *good("good"),
            ("nothing.txt", b"a caption"),
            ("silent.png", png()),
            ("blank.png", png()),
            ("blank.txt", b"  \n"),
            ("broken.jpg", b"no picture"),
            ("broken.txt", b"a caption"),
            ("latin.png", png()),
            ("latin.txt", b"caf\xe9"),
            *good("good"),
            ("twice.png", png()),
            *good("twice"),
            ("README", b"no sample"),
            *good("folder.v2/last"),
        ),
        cut,
        tmp_path / "c.tar",
        tmp_path / "d.tar",
    ]
    paths[2].write_bytes(b"this is no tar" * 100)
    paths[3].write_bytes(b"")
    stream = ShardStream(paths, ONCE)
    assert ids(stream) == ["good", "folder.v2/last", "c1"]
    assert stream.report.num_examples == 3
    assert stream.report.skipped == {
        "no image": 1,
        "no caption": 2,
        "broken image": 1,
        "broken caption": 1,
        "duplicate key": 2,
        "broken shard": 3,
    }
    named = "\n".join(stream.report.named)
    for name in (
        "'nothing'",
        "'silent'",
        "'broken'",
        "'latin'",
        "'twice'",
        "b.tar after 1 samples",
    ):
        assert name in named
    assert str(stream.report).startswith("3 examples, 10 skipped (1 broken caption, ")


def headers(path):
    with tarfile.open(path) as archive:
        return [member.offset for member in archive], archive.offset


def test_no_damage_passes_for_the_end(tmp_path):
    """tarfile alone would stop in silence at a damaged header, and at a cut between members."""
    path = tar(tmp_path / "a.tar", *good("a"), *good("b"), *good("c"))
    whole = path.read_bytes()
    starts, end = headers(path)
    assert len(starts) == 6
    for number, start in enumerate(starts):
        damaged = whole[:start] + b"\xff" * 512 + whole[start + 512 :]
        for data in (damaged, whole[:start], whole[: start + 100], whole[: start + 600]):
            path.write_bytes(data)
            read = []
            with pytest.raises(tarfile.TarError), path.open("rb") as file:
                read += (group.key for group in module._groups(file))
            assert len(read) <= number // 2
    path.write_bytes(whole[:end])
    with pytest.raises(tarfile.TarError), path.open("rb") as file:
        list(module._groups(file))
    path.write_bytes(whole[: end + 512])
    with path.open("rb") as file:
        assert [group.key for group in module._groups(file)] == ["a", "b", "c"]


def test_the_report_names_only_the_first(tmp_path):
    nameless = [(f"{n}.txt", b"a caption") for n in range(50)]
    stream = ShardStream(tar(tmp_path / "a.tar", *good("a"), *nameless), ONCE)
    assert len(list(stream)) == 1
    assert stream.report.skipped == {"no image": 50}
    assert len(stream.report.named) == module.MAX_NAMED
    double = stream.report + stream.report
    assert (double.num_examples, double.skipped) == (2, {"no image": 100})


@pytest.mark.parametrize(
    "options", [ShardOptions(), ShardOptions(epochs=1), ShardOptions(epochs=9)]
)
def test_shards_without_one_usable_sample_are_an_error(tmp_path, options):
    paths = [tar(tmp_path / f"{n}.tar", ("a.jpg", b"x"), ("a.txt", b"x")) for n in range(3)]
    with pytest.raises(ShardError, match=r"no usable sample .* broken image"):
        next(iter(ShardStream(paths, options)))


def test_one_useless_shard_of_many_parts_is_not_fatal(tmp_path):
    paths = [tar(tmp_path / "bad.tar", ("a.jpg", b"x")), tar(tmp_path / "good.tar", *good("a"))]
    for part in range(2):
        stream = ShardStream(paths, ShardOptions(), part, 2)
        assert ids(islice(stream, 3)) == ["a"] * 3
        assert stream.report.skipped["no caption"] > 0


@pytest.mark.parametrize(
    ("members", "captions"),
    [
        ([("txt", b" a caption \n")], {"a caption"}),
        ([("json", b'{"caption": "from json"}')], {"from json"}),
        ([("txt", b"text"), ("json", b'{"caption": "from json"}')], {"text"}),
        ([("txt", b"text"), ("json", b'{"captions": ["one", "two", ""]}')], {"one", "two"}),
        ([("json", b'{"captions": [{"text": "one", "language": "zh"}]}')], {"one"}),
        ([("TXT", "一只猫".encode())], {"一只猫"}),
    ],
)
def test_captions_are_found_where_they_usually_are(tmp_path, members, captions):
    path = tar(tmp_path / "a.tar", ("a.png", png()), *((f"a.{e}", data) for e, data in members))
    (read,) = ShardStream(path, ONCE)
    assert {c.text for c in read.captions} == captions


@pytest.mark.parametrize("broken", [b"{", b"\xff", b"[1]"])
def test_broken_metadata_is_no_crash(tmp_path, broken):
    path = tar(tmp_path / "a.tar", *good("a"), ("b.png", png()), ("b.json", broken))
    stream = ShardStream(path, ONCE)
    assert ids(stream) == ["a"]
    assert sum(stream.report.skipped.values()) == 1


# ------------------------------------------------------------------------------------------- order


def test_every_epoch_gives_everything_once_in_its_own_order(tmp_path):
    stream = ShardStream(written(tmp_path), MIXED)
    first, second = ids(islice(stream, 30)), ids(islice(stream, 30))
    assert sorted(first) == sorted(second) == sorted(ids(map(example, range(30))))
    assert first != second and first != ids(map(example, range(30)))
    other = ShardStream(tmp_path / "*.tar", ShardOptions(seed=4, buffer=7))
    assert ids(islice(other, 30)) != first
    assert ids(islice(ShardStream(tmp_path / "*.tar", MIXED), 60)) == first + second


def test_the_buffer_mixes_what_neighbouring_shards_hold(tmp_path):
    paths = written(tmp_path)
    order = ids(islice(ShardStream(paths, ShardOptions(buffer=15)), 15))
    shards = [int(name[2:]) // 5 for name in order]
    assert len(set(shards)) == 3
    assert sum(a != b for a, b in pairwise(shards)) > 4
    plain = ids(islice(ShardStream(paths, ShardOptions(buffer=1)), 5))
    assert len({int(name[2:]) // 5 for name in plain}) == 1 and plain == sorted(plain, key=len)


@pytest.mark.parametrize(("count", "num_parts"), [(30, 2), (30, 4), (30, 6), (23, 3)])
def test_parts_share_nothing_and_leave_nothing_out(tmp_path, count, num_parts):
    paths = written(tmp_path, count)
    options = ShardOptions(epochs=1, buffer=7)
    parts = [ids(ShardStream(paths, options, p, num_parts)) for p in range(num_parts)]
    assert all(parts)
    assert Counter(chain(*parts)) == Counter(ids(map(example, range(count))))
    two = [ids(ShardStream(paths, ShardOptions(epochs=2), p, num_parts)) for p in range(num_parts)]
    assert set(Counter(chain(*two)).values()) == {2}


def test_more_parts_than_shards_are_refused(tmp_path):
    with pytest.raises(ShardError, match=r"6 shards cannot be shared by 7 parts"):
        ShardStream(written(tmp_path), MIXED, 0, 7)
    with pytest.raises(ShardError, match="part must be from 0 to 1, got 2"):
        ShardStream(tmp_path / "*.tar", MIXED, 2, 2)


def test_captions_are_drawn_anew_in_each_epoch_and_alike_in_each_run(tmp_path):
    write_shards((example(n, 4) for n in range(40)), tmp_path, max_samples=10)

    def drawn(seed):
        stream = ShardStream(tmp_path / "*.tar", ShardOptions(seed=seed, shuffle=False))
        return [e.captions[0].text for e in islice(stream, 80)]

    texts = drawn(0)
    assert texts == drawn(0) and texts != drawn(1) and texts[:40] != texts[40:]
    counts = Counter(text[-1] for text in texts)
    assert set(counts) == set("0123") and min(counts.values()) > 8


# -------------------------------------------------------------------------------------- resumption


def messy(folder):
    """Six shards, all with something to skip, one of them cut."""
    folder.mkdir(exist_ok=True)
    for s in range(6):
        members = []
        for n in range(8):
            key = f"{s}{n}"
            members += good(key, f"caption {key}".encode())
            if n % 3 == 0:
                members += [(f"{key}x.png", png())]
            if n % 4 == 1:
                members += [(f"{key}y.png", b"broken"), (f"{key}y.txt", b"a caption")]
        tar(folder / f"{s}.tar", *members)
    cut = folder / "2.tar"
    cut.write_bytes(cut.read_bytes()[:9000])
    return str(folder / "*.tar")


@pytest.mark.parametrize("options", [MIXED, ShardOptions(buffer=1), ShardOptions(shuffle=False)])
@pytest.mark.parametrize("num_parts", [1, 4])
def test_a_stream_goes_on_from_any_place(tmp_path, options, num_parts):
    shards, total = messy(tmp_path / "s"), 60
    whole = ShardStream(shards, options, num_parts - 1, num_parts)
    expected, states, reports = [], [whole.state_dict()], [SkipReport()]
    for read in islice(whole, total):
        expected.append(read)
        states.append(json.loads(json.dumps(whole.state_dict())))
        reports.append(SkipReport() + whole.report)
    assert whole.epoch > 0 and ("broken shard" in whole.report.skipped or num_parts > 1)
    for place in range(0, total, 7):
        stream = ShardStream(shards, options, num_parts - 1, num_parts)
        stream.load_state_dict(states[place])
        assert stream.report == reports[place]
        rest = list(islice(stream, total - place))
        assert ids(rest) == ids(expected[place:])
        assert [e.captions for e in rest] == [e.captions for e in expected[place:]]
        assert stream.report == reports[total]


def test_a_state_of_something_else_is_refused(tmp_path):
    paths = written(tmp_path)
    state = ShardStream(paths, MIXED).state_dict()
    for stream in (
        ShardStream(paths[:-1], MIXED),
        ShardStream(paths, MIXED, 0, 2),
        ShardStream(paths, ShardOptions(seed=9, buffer=7)),
    ):
        with pytest.raises(ShardError, match="the state is of a stream with"):
            stream.load_state_dict(state)


def to_ids(examples, draws):
    return [*ids(examples), float(torch.rand((), generator=draws))]


@pytest.mark.parametrize("workers", [0, 1, 3])
def test_batches_go_on_exactly_with_workers(tmp_path, workers):
    shards = messy(tmp_path / "s")

    def loader():
        return ShardLoader(shards, 4, to_ids, MIXED, process=1, num_processes=2, workers=workers)

    whole, expected, states = loader(), [], []
    for batch in islice(whole, 12):
        expected.append(batch)
        states.append(json.loads(json.dumps(whole.state_dict())))
    for done in (1, 5, 8):
        resumed = loader()
        resumed.load_state_dict(states[done - 1])
        assert list(islice(resumed, 12 - done)) == expected[done:]
        assert resumed.report == whole.report
    draws = [batch.pop() for batch in expected]
    assert len(set(draws)) == len(draws)
    assert whole.report.num_examples == 48 and whole.report.skipped["broken image"] > 0


def test_workers_share_an_epoch_without_overlap(tmp_path):
    paths = written(tmp_path, count=32, per_shard=4)
    seen = []
    for process in range(2):
        loader = ShardLoader(paths, 4, to_ids, MIXED, process, num_processes=2, workers=2)
        seen += [name for batch in islice(loader, 4) for name in batch[:-1]]
    assert Counter(seen) == Counter(ids(map(example, range(32))))


def test_loaders_refuse_what_they_cannot_do(tmp_path):
    paths = written(tmp_path)
    with pytest.raises(ValueError, match="epochs must be None"):
        ShardLoader(paths, 4, to_ids, ONCE)
    with pytest.raises(ValueError, match="batch_size must be at least 1"):
        ShardLoader(paths, 0, to_ids)
    with pytest.raises(ShardError, match="shared by 8 parts"):
        ShardLoader(paths, 4, to_ids, num_processes=4, workers=2)
    with pytest.raises(ShardError, match="of 1 workers, there are 2"):
        state = ShardLoader(paths, 4, to_ids).state_dict()
        ShardLoader(paths, 4, to_ids, workers=2).load_state_dict(state)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("seed", -1),
        ("buffer", 0),
        ("epochs", 0),
        ("retries", -1),
        ("timeout", 0.0),
        ("pause", -1.0),
    ],
)
def test_options_are_checked(name, value):
    with pytest.raises(ValueError, match=f"{name} must be at least .*, got {value}"):
        ShardOptions(**{name: value})


# --------------------------------------------------------------------------------------- addresses


class Server:
    """Serves a folder over HTTP; hangs up after ``limit`` bytes in the first ``breaks`` answers."""

    def __init__(self, folder):
        self.folder, self.breaks, self.limit, self.ranges = folder, 0, 3000, True
        self.requests = []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                outer.answer(self)

            def log_message(self, *args):
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.http.serve_forever, daemon=True).start()
        self.address = f"http://127.0.0.1:{self.http.server_address[1]}"

    def answer(self, handler):
        path = self.folder / handler.path.lstrip("/")
        wanted = handler.headers.get("Range")
        self.requests.append((path.name, wanted))
        if not path.is_file():
            handler.send_error(404)
            return
        first = int(wanted[6:-1]) if wanted and self.ranges else 0
        data = path.read_bytes()[first:]
        handler.send_response(206 if first else 200)
        handler.send_header("Content-Length", str(len(data)))
        handler.end_headers()
        broken, self.breaks = self.breaks > 0, self.breaks - 1
        handler.wfile.write(data[: self.limit] if broken else data)
        handler.close_connection = True


@pytest.fixture
def server(tmp_path):
    server = Server(tmp_path)
    yield server
    server.http.shutdown()
    server.http.server_close()


WEB = ShardOptions(epochs=1, shuffle=False, pause=0.01)


def test_shards_are_read_from_addresses(tmp_path, server):
    written(tmp_path)
    stream = ShardStream(f"{server.address}/shard-0000{{0..5}}.tar", WEB)
    assert ids(stream) == ids(map(example, range(30)))
    assert len(server.requests) == 6 and not stream.report.skipped


@pytest.mark.parametrize("ranges", [True, False])
def test_a_broken_connection_is_taken_up_again(tmp_path, server, ranges):
    written(tmp_path)
    server.breaks, server.ranges = 2, ranges
    if not ranges:
        server.limit = 8000
    stream = ShardStream(f"{server.address}/shard-00001.tar", WEB)
    assert ids(stream) == ids(map(example, range(5, 10)))
    assert not stream.report.skipped
    assert [wanted is not None for _, wanted in server.requests] == [False, True, True]


def test_a_connection_that_stays_broken_costs_the_rest_of_the_shard(tmp_path, server):
    paths = written(tmp_path, count=10)
    server.breaks, server.ranges = 4, False
    stream = ShardStream(f"{server.address}/shard-0000{{0..1}}.tar", WEB)
    read = ids(stream)
    assert read[-5:] == ids(map(example, range(5, 10))) and len(read) < 10
    assert stream.report.skipped == {"unreachable shard": 1}
    assert "shard-00000.tar" in stream.report.named[0] and "tried 4 times" in stream.report.named[0]
    size = paths[0].stat().st_size
    assert f"of {size:,} bytes" in stream.report.named[0]


def test_a_missing_address_is_skipped_and_asked_once(tmp_path, server):
    written(tmp_path, count=5)
    stream = ShardStream([f"{server.address}/shard-00000.tar", f"{server.address}/no.tar"], WEB)
    assert len(list(stream)) == 5
    assert stream.report.skipped == {"unreachable shard": 1}
    assert "404" in stream.report.named[0]
    assert [name for name, _ in server.requests].count("no.tar") == 1


def test_nothing_reachable_is_an_error(tmp_path):
    options = ShardOptions(retries=1, pause=0.01)
    with pytest.raises(ShardError, match=r"no usable sample .*unreachable"):
        next(iter(ShardStream("http://127.0.0.1:9/{a,b}.tar", options)))


# ----------------------------------------------------------------------------------- two processes


def colored(number):
    color = torch.tensor([8 * number, 64 * (number % 4), 248 - 8 * number], dtype=torch.uint8)
    return color[:, None, None].expand(3, 16, 16).contiguous()


@pytest.mark.slow
def test_two_processes_see_different_pairs_and_train_one_model(tmp_path):
    examples = [Example(f"e.{n}", colored(n), "", (Caption(chr(40 + n)),)) for n in range(32)]
    write_shards(examples, tmp_path, max_samples=4)
    script = Path(__file__).with_name("shard_run.py")
    # What `accelerate launch --multi_gpu` starts; without GPUs it would start one process only.
    launch = "-m torch.distributed.run --standalone --nproc_per_node 2"
    command = [sys.executable, *launch.split(), str(script), f"{tmp_path}/*.tar", str(tmp_path)]
    root = str(Path(__file__).parents[2])
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": root}
    done = subprocess.run([*command, "40"], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    one, two = (json.loads((tmp_path / f"{p}.json").read_text()) for p in range(2))
    # 32 pairs are two batches of 8 for each process: an epoch.
    for epoch in range(20):
        halves = [set(chain(*p["seen"][2 * epoch : 2 * epoch + 2])) for p in (one, two)]
        assert not halves[0] & halves[1]
        assert halves[0] | halves[1] == {e.id for e in examples}
    assert one["losses"] == two["losses"] and one["weights"] == two["weights"]
    # Guessing among the pairs of both processes costs ln 16; learning them by heart costs less.
    assert sum(one["losses"][-5:]) / 5 < 0.75 * math.log(16)


# ------------------------------------------------------------------------- texts or images alone

TEXTS = ShardOptions(epochs=1, shuffle=False, wants="texts")
IMAGES = ShardOptions(epochs=1, shuffle=False, wants="images")


def test_texts_alone_are_written_and_read(tmp_path):
    nothing = torch.zeros(3, 0, 0, dtype=torch.uint8)
    texts = [replace(example(n, num_captions=2), image=nothing) for n in range(5)]
    paths = write_shards(texts, tmp_path)
    with tarfile.open(paths[0]) as archive:
        assert not [name for name in archive.getnames() if name.endswith("png")]
    stream = ShardStream(paths, TEXTS)
    read = list(stream)
    assert [set(e.captions) for e in read] == [set(e.captions) for e in texts]
    assert all(e.image.shape == (3, 0, 0) for e in read) and not stream.report.skipped
    for options in (ONCE, IMAGES):
        with pytest.raises(ShardError, match=r"no usable sample .*5 no image"):
            list(ShardStream(paths, options))


def test_images_alone_are_read_and_need_no_caption(tmp_path):
    broken = [("c.png", png()), ("c.txt", b"\xff"), ("c.json", b"{")]
    tar(tmp_path / "a.tar", ("a.png", png()), *good("b"), *broken, ("d.txt", b"alone"))
    stream = ShardStream(tmp_path / "a.tar", IMAGES)
    read = list(stream)
    assert [e.id for e in read] == ["a", "b", "c"] and stream.report.skipped == {"no image": 1}
    assert [len(e.captions) for e in read] == [0, 1, 0]
    texts = ShardStream(tmp_path / "a.tar", TEXTS)
    assert [e.captions[0].text for e in texts] == ["a caption", "alone"]
    assert texts.report.skipped == {"no caption": 1, "broken caption": 1}


def test_an_image_that_nobody_wants_is_not_decoded(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "decode_image", lambda *given: pytest.fail("it is decoded"))
    tar(tmp_path / "a.tar", *good("a"), ("b.png", b"no image"), ("b.txt", b"b"))
    assert [e.id for e in ShardStream(tmp_path / "a.tar", TEXTS)] == ["a", "b"]


def test_what_is_wanted_is_one_of_three():
    with pytest.raises(ValueError, match="wants must be one of pairs, images, texts, got 'text'"):
        ShardOptions(wants="text")
