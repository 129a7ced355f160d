"""Image-text pairs from the web, streamed from tar shards in the layout of WebDataset.

A shard is a plain tar file. Neighbouring members that share a name up to the first dot are one
sample: ``000000042.jpg``, ``000000042.txt`` (a caption) and, if there is one, ``000000042.json``.
Shards of texts alone, or of images alone, are read as well: ``ShardOptions.wants`` says so.

What such pairs are like. CC3M and CC12M are lists of addresses with the alt-text of the page
(Sharma et al. 2018; Changpinyo et al. 2021, arXiv 2102.08981), kept or thrown away by rules that
nobody checked by hand. CC3M replaced names by their kinds ("actor"); CC12M keeps the alt-text as it
was, but for people's names, which became a placeholder in about a quarter of the captions (its data
card), so a caption often tells what the page sells and not what the picture shows. Addresses die:
the copy of CC3M made in December 2021 has 2,905,954 of 3,318,333 images (data card of
pixparse/cc3m-wds), open_clip's documentation counts 10,968,539 in CC12M, whose list has 12,423,374
rows (its data card). A figure measured on such a set should name the copy. The list has a licence,
the images do not share it: each belongs to whoever made it, so that shards are for research and are
not to be passed on without thought. LAION's lists (Schuhmann et al. 2022, arXiv 2210.08402) were
filtered by a CLIP model instead, which lets that model's taste through; they come with warnings
about what nobody looked at. Expect broken images, empty captions and half a shard: here they are
skipped, counted and named.
"""

from __future__ import annotations

import io
import json
import os
import re
import tarfile
import time
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing, suppress
from dataclasses import asdict, dataclass, field
from glob import glob
from http.client import HTTPException
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Generator
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from mmlab.datasets.example import Caption, Example
from mmlab.datasets.images import ImageError, decode_image

IMAGE_ENDINGS = ("jpg", "jpeg", "png", "webp", "gif", "bmp", "tif", "tiff")
MAX_NAMED = 20
MIN_READINGS = 20
WANTS = ("pairs", "images", "texts")
_SHARD_ORDER, _BUFFER_ORDER, _CAPTION, _BATCH = 1, 2, 3, 4
_TAR_BLOCK = 512

State = dict[str, Any]
"""Where a stream stands: numbers, texts, lists and dictionaries alone, so that JSON can hold it."""


class ShardError(ValueError):
    """Shards that cannot be used at all, or not be written; the message is one sentence."""


# ----------------------------------------------------------------------------------------- writing


def write_shards(
    examples: Iterable[Example],
    folder: str | os.PathLike[str],
    prefix: str = "shard",
    max_samples: int = 10_000,
    max_bytes: int = 1_000_000_000,
) -> list[Path]:
    """Write ``<folder>/<prefix>-00000.tar`` and so on; the paths of all.

    Images become PNG, which loses nothing; one without pixels (3, 0, 0) is left out, so that a
    corpus of texts alone can be written. The first caption is the ``.txt``; all captions, with
    their language and kind, and what else is known in words are in the ``.json``. A shard ends
    before it has more than ``max_samples`` samples or ``max_bytes`` of them (a larger sample has a
    shard for itself). The same examples give the same bytes. A shard is there as a whole or not.

    Raises:
        ShardError: a limit is below 1, the folder has shards of this name, or it cannot be written.
    """
    for name, value in (("max_samples", max_samples), ("max_bytes", max_bytes)):
        if value < 1:
            raise ShardError(f"{name} must be at least 1, got {value}")
    folder = Path(folder)
    if any(folder.glob(f"{prefix}-*.tar")):
        raise ShardError(f"{str(folder)!r} already has shards named {prefix}-….tar; remove them")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        shards = _divide(map(_members, range(10**9), examples), max_samples, max_bytes)
        return [
            _write_whole(folder / f"{prefix}-{number:05d}.tar", shard)
            for number, shard in enumerate(shards)
        ]
    except OSError as error:
        raise ShardError(
            f"cannot write shards to {str(folder)!r}: {error.strerror or error}"
        ) from None


_Members = list[tuple[str, bytes]]


def _members(number: int, example: Example) -> _Members:
    """The files of one sample. A key must have no dot, so that the example's own id is no key."""
    key = f"{number:09d}"
    files = []
    if example.image.numel():
        image = Image.fromarray(example.image.permute(1, 2, 0).numpy())
        png = io.BytesIO()
        image.save(png, "PNG")
        files.append((f"{key}.png", png.getvalue()))
    captions = [{"text": c.text, "language": c.language, "kind": c.kind} for c in example.captions]
    known = {"id": example.id, "label": example.label, "captions": captions}
    known |= {"source": example.source, "license": example.license, "extra": dict(example.extra)}
    if captions:
        files.append((f"{key}.txt", captions[0]["text"].encode()))
    text = json.dumps(known, ensure_ascii=False, sort_keys=True)
    return [*files, (f"{key}.json", text.encode())]


def _divide(
    samples: Iterable[_Members], max_samples: int, max_bytes: int
) -> Iterator[list[_Members]]:
    shard: list[_Members] = []
    size = 0
    for sample in samples:
        sample_size = sum(_size_in_tar(data) for _, data in sample)
        if shard and (len(shard) == max_samples or size + sample_size > max_bytes):
            yield shard
            shard, size = [], 0
        shard.append(sample)
        size += sample_size
    if shard:
        yield shard


def _size_in_tar(data: bytes) -> int:
    """A header and whole blocks."""
    return _TAR_BLOCK * (1 + -(-len(data) // _TAR_BLOCK))


def _write_whole(path: Path, samples: list[_Members]) -> Path:
    partial = path.with_name(path.name + ".partial")
    try:
        with partial.open("wb") as file:
            with tarfile.open(fileobj=file, mode="w", format=tarfile.USTAR_FORMAT) as tar:
                for name, data in (member for sample in samples for member in sample):
                    # A TarInfo of its own has no owner, no time and fixed rights.
                    info = tarfile.TarInfo(name)
                    info.size = len(data)
                    tar.addfile(info, io.BytesIO(data))
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
    return path


# ------------------------------------------------------------------------------------ finding them


def list_shards(shards: str | os.PathLike[str] | Iterable[str | os.PathLike[str]]) -> list[str]:
    """All shards that one or several names stand for, in their order.

    A name is a path, an address (``http``, ``https``), a path with ``*``, or any of these with
    braces: ``cc3m-{00000..00331}.tar``, ``{train,extra}.tar``.

    Raises:
        ShardError: there is none, one is listed twice, a file is missing, or an address is of
            another kind.
    """
    names = [shards] if isinstance(shards, str | os.PathLike) else list(shards)
    found = [path for name in names for text in _expand(os.fspath(name)) for path in _match(text)]
    if not found:
        raise ShardError(f"no shards: {', '.join(map(repr, names)) or 'the list'} stands for none")
    twice = [name for name, count in Counter(found).items() if count > 1]
    if twice:
        raise ShardError(f"the shard {twice[0]!r} is listed more than once")
    missing = [name for name in found if not _is_address(name) and not os.path.isfile(name)]
    if missing:
        raise ShardError(
            f"{len(missing)} of {len(found)} shards are missing; the first is {missing[0]!r}"
        )
    return found


def _expand(text: str) -> list[str]:
    """Braces: ``{00..11}`` counts, keeping the zeros; ``{a,b}`` lists."""
    braces = re.search(r"\{([^{}]*)\}", text)
    if braces is None:
        return [text]
    inside = re.fullmatch(r"(\d+)\.\.(\d+)", braces[1])
    if inside:
        first, last = int(inside[1]), int(inside[2])
        choices = [f"{n:0{len(inside[1])}d}" for n in range(first, last + 1)]
    else:
        choices = braces[1].split(",")
    before, after = text[: braces.start()], text[braces.end() :]
    return [whole for choice in choices for whole in _expand(before + choice + after)]


def _match(text: str) -> list[str]:
    if "://" in text and not _is_address(text):
        kind = text.split("://")[0]
        raise ShardError(f"a shard must be a file or an http(s) address, got {kind}:// in {text!r}")
    return sorted(glob(text)) if "*" in text and not _is_address(text) else [text]


def _is_address(name: str) -> bool:
    return name.startswith(("http://", "https://"))


# ------------------------------------------------------------------------------------- one shard


class _Address(io.RawIOBase):
    """The bytes at an address, in order; a broken connection is taken up again where it broke."""

    def __init__(self, address: str, retries: int, timeout: float, pause: float):
        self.address, self.retries, self.timeout, self.pause = address, retries, timeout, pause
        self.place, self.size, self.response = 0, None, None
        self.breaks = 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer) -> int:
        """Fill the buffer, at least in part; 0 at the end."""
        while True:
            try:
                data = self._connected().read(len(buffer))
                if not data and self.size is not None and self.place < self.size:
                    raise ConnectionError(f"broke after {self.place:,} of {self.size:,} bytes")
                break
            except (OSError, HTTPException) as error:
                self._try_again(error)
        self.place += len(data)
        buffer[: len(data)] = data
        return len(data)

    def _connected(self):
        if self.response is None:
            # Range asks for the rest; a server that does not know it sends all, from the start.
            header = {"Range": f"bytes={self.place}-"} if self.place else {}
            request = urllib.request.Request(self.address, headers=header)
            self.response = urllib.request.urlopen(request, timeout=self.timeout)
            skipped = self.place if self.response.status != 206 else 0
            length = self.response.headers.get("Content-Length")
            if length is not None:
                self.size = int(length) + self.place - skipped
            while skipped:
                passed = len(self.response.read(min(skipped, 1 << 20)))
                if not passed:
                    raise ConnectionError(f"broke before byte {self.place:,}")
                skipped -= passed
        return self.response

    def _try_again(self, error: Exception) -> None:
        self._hang_up()
        self.breaks += 1
        # 4xx: asking again will not help.
        final = 400 <= getattr(error, "code", 0) < 500
        if final or self.breaks > self.retries:
            raise OSError(f"{error} (tried {self.breaks} times)") from None
        time.sleep(self.pause * 2 ** (self.breaks - 1))

    def _hang_up(self) -> None:
        if self.response is not None:
            with suppress(OSError):
                self.response.close()
        self.response = None

    def close(self) -> None:
        self._hang_up()
        super().close()


class _StrictTarInfo(tarfile.TarInfo):
    """Ends an archive only at its end mark; tarfile takes a damaged header for the end, too."""

    @classmethod
    def fromtarfile(cls, tar):
        try:
            return super().fromtarfile(tar)
        except tarfile.EOFHeaderError:
            raise
        except tarfile.HeaderError as error:
            raise tarfile.ReadError(f"{error} at byte {tar.offset:,}") from None


@dataclass
class _Group:
    """The members of a tar that share a key, by ending, in lower case."""

    index: int
    key: str
    files: dict[str, bytes] = field(default_factory=dict)
    repeated: bool = False


def _groups(file: io.BufferedIOBase) -> Iterator[_Group]:
    """The samples of a shard; OSError or TarError where it breaks, the last sample left out."""
    group = None
    with tarfile.open(fileobj=file, mode="r|", tarinfo=_StrictTarInfo) as tar:
        for member in tar:
            tar.members.clear()
            folder, slash, name = member.name.rpartition("/")
            stem, dot, ending = name.partition(".")
            if not member.isreg() or not dot or not stem:
                continue
            key, ending = folder + slash + stem, ending.lower()
            if group is None or key != group.key:
                if group is not None:
                    yield group
                group = _Group(0 if group is None else group.index + 1, key)
            group.repeated |= ending in group.files
            group.files[ending] = tar.extractfile(member).read()
    if group is not None:
        yield group


# ------------------------------------------------------------------------------------ the samples


_NO_IMAGE = torch.zeros(3, 0, 0, dtype=torch.uint8)


class _Skip(Exception):
    """A sample that cannot be used: the reason, and the details."""

    def __init__(self, reason: str, detail: str = ""):
        self.reason, self.detail = reason, detail


@dataclass
class SkipReport:
    """What a stream gave and what it skipped, by reason; the first few are named.

    Reasons: ``"no image"``, ``"no caption"``, ``"broken caption"`` (no UTF-8, no JSON), ``"broken
    image"``, ``"duplicate key"``, and for what is left of a whole shard ``"broken shard"`` (cut
    short, no tar) and ``"unreachable shard"`` (file or connection).
    """

    num_examples: int = 0
    skipped: dict[str, int] = field(default_factory=dict)
    named: list[str] = field(default_factory=list)

    def skip(self, reason: str, name: str) -> None:
        """Count one, and name it if it is among the first ``MAX_NAMED``."""
        self.skipped[reason] = self.skipped.get(reason, 0) + 1
        if len(self.named) < MAX_NAMED:
            self.named.append(f"{reason}: {name}")

    def __add__(self, other: SkipReport) -> SkipReport:
        skipped = Counter(self.skipped) + Counter(other.skipped)
        named = (self.named + other.named)[:MAX_NAMED]
        return SkipReport(self.num_examples + other.num_examples, dict(skipped), named)

    def __str__(self) -> str:
        total = sum(self.skipped.values())
        reasons = ", ".join(f"{count:,} {reason}" for reason, count in sorted(self.skipped.items()))
        first = f"; first: {self.named[0]}" if self.named else ""
        return f"{self.num_examples:,} examples, {total:,} skipped ({reasons or 'none'}){first}"


@dataclass(frozen=True)
class _Sample:
    """A sample as it is in the tar, with its address: place in the order of shards, and index."""

    place: int
    index: int
    shard: str
    key: str
    image: bytes | None
    captions: tuple[Caption, ...]
    known: dict[str, Any]


def _to_sample(group: _Group, place: int, shard: str, keys: set[str], wants: str) -> _Sample:
    """What of a sample is not wanted is not looked at: nothing waits in the buffer in vain."""
    repeated = group.repeated or group.key in keys
    keys.add(group.key)
    if repeated:
        raise _Skip("duplicate key")
    image = next((group.files[e] for e in IMAGE_ENDINGS if e in group.files), None)
    image = None if wants == "texts" else image
    if image is None and wants != "texts":
        raise _Skip("no image")
    try:
        known = json.loads(group.files.get("json", b"{}"))
        text = group.files.get("txt", b"").decode()
    except ValueError as error:
        if wants != "images":
            raise _Skip("broken caption", str(error)) from None
        known, text = {}, ""
    known = known if isinstance(known, dict) else {}
    captions = _captions(known, text)
    if not captions and wants != "images":
        raise _Skip("no caption")
    return _Sample(place, group.index, shard, group.key, image, captions, known)


def _captions(known: dict[str, Any], text: str) -> tuple[Caption, ...]:
    """Those of the JSON's list, else the text, else the JSON's one; none that is blank."""
    listed = known.get("captions")
    if not isinstance(listed, list) or not listed:
        listed = [text if text.strip() else known.get("caption")]
    fields = [c if isinstance(c, dict) else {"text": c} for c in listed]
    return tuple(
        Caption(f["text"].strip(), str(f.get("language", "en")), str(f.get("kind", "alt")))
        for f in fields
        if isinstance(f.get("text"), str) and f["text"].strip()
    )


def _to_example(sample: _Sample, seed: int) -> Example:
    try:
        image = _NO_IMAGE if sample.image is None else decode_image(sample.image, sample.key)
    except ImageError as error:
        raise _Skip("broken image", str(error)) from None
    known, extra = sample.known, sample.known.get("extra")
    plain = (extra if isinstance(extra, dict) else known).items()
    return Example(
        id=str(known.get("id") or sample.key),
        image=image,
        label=str(known.get("label") or ""),
        captions=_drawn_first(sample, seed),
        source=str(known.get("source") or known.get("url") or sample.shard),
        license=str(known.get("license") or ""),
        extra={name: value for name, value in plain if isinstance(value, str)},
    )


def _drawn_first(sample: _Sample, seed: int) -> tuple[Caption, ...]:
    """The captions, one of them drawn for this reading."""
    if not sample.captions:
        return ()
    draws = np.random.default_rng([seed, _CAPTION, sample.place, sample.index])
    chosen = int(draws.integers(len(sample.captions)))
    return (sample.captions[chosen], *sample.captions[:chosen], *sample.captions[chosen + 1 :])


# -------------------------------------------------------------------------------------- the stream


@dataclass(frozen=True)
class ShardOptions:
    """How shards are read.

    - ``seed``: of the order of shards, of the buffer, and of the caption that is drawn.
    - ``buffer``: samples that are shuffled together; 1 keeps the order within a shard. They wait
      undecoded, so that 1,000 take about as much memory as their files.
    - ``shuffle``: whether the order of shards and of the buffer is random.
    - ``epochs``: how often to read all; None never ends.
    - ``wants``: what a sample must have: ``"pairs"`` an image and a caption, ``"images"`` an image,
      ``"texts"`` a caption. An image that is not wanted is not decoded; examples of texts have one
      without pixels, (3, 0, 0).
    - ``retries``, ``timeout``, ``pause``: how often to take up a broken connection to a shard, the
      longest silence, and the wait before the first new try (seconds; it doubles).

    A wrong value raises ValueError.
    """

    seed: int = 0
    buffer: int = 1000
    shuffle: bool = True
    epochs: int | None = None
    wants: str = "pairs"
    retries: int = 3
    timeout: float = 30.0
    pause: float = 0.5

    def __post_init__(self) -> None:
        if self.wants not in WANTS:
            raise ValueError(f"wants must be one of {', '.join(WANTS)}, got {self.wants!r}")
        least = {"seed": 0, "buffer": 1, "retries": 0, "timeout": 0.001, "pause": 0}
        if self.epochs is not None:
            least["epochs"] = 1
        for name, minimum in least.items():
            value = getattr(self, name)
            if value < minimum:
                raise ValueError(f"{name} must be at least {minimum}, got {value!r}")


class ShardStream:
    """Examples from shards; ``captions[0]`` is the one drawn for this reading.

    Of the shards in the order of each epoch, this part takes every ``num_parts``-th: parts share no
    sample within an epoch. Each epoch has an order of its own, and an epoch's order continues where
    the one before ended, so that parts need no even number of shards.

    The buffer is filled, shuffled and emptied before it is filled again; it never holds samples of
    two epochs. It mixes a little less than one that is refilled sample by sample, and makes a state
    small and exact: ``state_dict()`` says where the buffer began and how many have left it. Another
    stream that loads it (same shards, same options) reads the buffer again and goes on with the
    very next example. Iterating again goes on, too. ``report`` tells what was skipped so far.

    Raises:
        ShardError: at once if a shard is missing or there are fewer shards than parts; while
            reading, if a whole round of shards holds not one usable sample.
    """

    def __init__(
        self,
        shards: str | os.PathLike[str] | Iterable[str | os.PathLike[str]],
        options: ShardOptions | None = None,
        part: int = 0,
        num_parts: int = 1,
    ):
        self.shards = list_shards(shards)
        self.options = options or ShardOptions()
        if not 0 <= part < num_parts:
            raise ShardError(f"part must be from 0 to {num_parts - 1}, got {part}")
        if len(self.shards) < num_parts:
            raise ShardError(
                f"{len(self.shards)} shards cannot be shared by {num_parts} parts (processes times "
                "workers); write more and smaller shards, or use fewer workers"
            )
        self.part, self.num_parts = part, num_parts
        self.report = SkipReport()
        # Where the buffer begins, and how many have left it.
        self._place, self._index, self._taken = part, 0, 0
        self._last_useful = part

    @property
    def epoch(self) -> int:
        """The epoch that the buffer is from, counted from 0."""
        return self._place // len(self.shards)

    def state_dict(self) -> State:
        """Where the stream stands, after the example that it gave last."""
        return {
            "part": self.part,
            "num_parts": self.num_parts,
            "num_shards": len(self.shards),
            "options": {n: getattr(self.options, n) for n in ("seed", "buffer", "shuffle")},
            "place": self._place,
            "index": self._index,
            "taken": self._taken,
            "last_useful": self._last_useful,
            "report": asdict(self.report),
        }

    def load_state_dict(self, state: State) -> None:
        """Go on from ``state``. ShardError if it is of other shards, parts or options."""
        mine = self.state_dict()
        for name in ("part", "num_parts", "num_shards", "options"):
            if state.get(name) != mine[name]:
                raise ShardError(
                    f"the state is of a stream with {name} {state.get(name)!r}, this one has "
                    f"{mine[name]!r}"
                )
        self._place, self._index, self._taken = state["place"], state["index"], state["taken"]
        self._last_useful = state["last_useful"]
        # A copy: the state must not change when this stream goes on.
        self.report = SkipReport() + SkipReport(**state["report"])

    def __iter__(self) -> Iterator[Example]:
        # What was skipped while a buffer was filled is in the report of a state already.
        report = self.report if self._taken == 0 else SkipReport()
        with closing(self._source(self._place, self._index, report)) as source:
            while not self._ended(self._place):
                filled, after = self._fill(source)
                for sample in filled[self._taken :]:
                    self._taken += 1
                    example = self._decode(sample)
                    if example is not None:
                        self._last_useful = sample.place
                        yield example
                self._check_useful(after[0])
                (self._place, self._index), self._taken = after, 0

    def _ended(self, place: int) -> bool:
        return self.options.epochs is not None and place >= self.options.epochs * len(self.shards)

    def _fill(self, source: _Source) -> tuple[list[_Sample], tuple[int, int]]:
        """The next buffer, shuffled, and where the one after it begins."""
        samples = []
        for sample in islice(source, self.options.buffer):
            if sample is None:
                break
            samples.append(sample)
        after = source.place, source.index
        source.report = self.report
        if self.options.shuffle:
            keys = (self.options.seed, _BUFFER_ORDER, self._place, self._index)
            order = np.random.default_rng(keys).permutation(len(samples))
            samples = [samples[i] for i in order]
        return samples, after

    def _source(self, place: int, index: int, report: SkipReport) -> _Source:
        return _Source(self, place, index, report)

    def _decode(self, sample: _Sample) -> Example | None:
        try:
            example = _to_example(sample, self.options.seed)
        except _Skip as skip:
            self.report.skip(skip.reason, f"{sample.shard}: {skip.detail}")
            return None
        self.report.num_examples += 1
        return example

    def _check_useful(self, place: int) -> None:
        """A round without one example would otherwise go on for ever."""
        # One of several parts sees few shards an epoch, and may meet a broken one time and again.
        num_readings = max(len(self.shards), 1 if self.num_parts == 1 else MIN_READINGS)
        barren = place - self._last_useful > num_readings * self.num_parts
        alone = self.num_parts == 1 and self._ended(place) and not self.report.num_examples
        if barren or alone:
            raise ShardError(
                f"no usable sample in a whole round of {len(self.shards)} shards: {self.report}"
            )

    def generator(self) -> Generator:
        """Random numbers for what is read next; they depend on where the stream stands alone."""
        keys = (self.options.seed, _BATCH, self._place, self._index, self._taken)
        return Generator().manual_seed(int(np.random.default_rng(keys).integers(2**63)))

    def captions(self) -> Iterator[str]:
        """The captions of all samples from where the stream stands; no image is decoded."""
        with closing(self._source(self._place, self._index, SkipReport())) as source:
            for sample in source:
                yield from (caption.text for caption in (sample.captions if sample else ()))

    def shard_at(self, place: int) -> str:
        """The shard at a place of the endless order of all epochs."""
        epoch, place = divmod(place, len(self.shards))
        if not self.options.shuffle:
            return self.shards[place]
        keys = (self.options.seed, _SHARD_ORDER, epoch)
        return self.shards[np.random.default_rng(keys).permutation(len(self.shards))[place]]


class _Source:
    """Undecoded samples of a part, in order; None after the last one of an epoch.

    ``place`` and ``index`` always say what comes next.
    """

    def __init__(self, stream: ShardStream, place: int, index: int, report: SkipReport):
        self.stream, self.place, self.index, self.report = stream, place, index, report
        self._samples = self._run()

    def __iter__(self) -> Iterator[_Sample | None]:
        return self._samples

    def close(self) -> None:
        """Close the shard that is open."""
        self._samples.close()

    def _run(self) -> Iterator[_Sample | None]:
        stream, num_shards = self.stream, len(self.stream.shards)
        while not stream._ended(self.place):
            yield from self._shard(stream.shard_at(self.place))
            epoch = self.place // num_shards
            self.place, self.index = self.place + stream.num_parts, 0
            if self.place // num_shards != epoch:
                yield None

    def _shard(self, shard: str) -> Iterator[_Sample]:
        try:
            with _open(shard, self.stream.options) as file:
                yield from self._usable(shard, file)
        except tarfile.TarError as error:
            self.report.skip("broken shard", f"{shard} after {self.index} samples: {error}")
        except OSError as error:
            self.report.skip("unreachable shard", f"{shard} after {self.index} samples: {error}")

    def _usable(self, shard: str, file: io.BufferedIOBase) -> Iterator[_Sample]:
        keys: set[str] = set()
        for group in _groups(file):
            if group.index < self.index:
                keys.add(group.key)
                continue
            self.index = group.index + 1
            try:
                sample = _to_sample(group, self.place, shard, keys, self.stream.options.wants)
            except _Skip as skip:
                detail = f" ({skip.detail})" if skip.detail else ""
                self.report.skip(skip.reason, f"{shard}: {group.key!r}{detail}")
                continue
            yield sample


def _open(shard: str, options: ShardOptions) -> io.BufferedIOBase:
    if not _is_address(shard):
        return open(shard, "rb")
    address = _Address(shard, options.retries, options.timeout, options.pause)
    return io.BufferedReader(address, 1 << 20)


# ------------------------------------------------------------------------------------- the batches

Collate = Callable[[Iterable[Example], Generator], Any]
"""Makes a batch of examples, which come one by one; it runs in the workers.

The generator is for what a batch draws at random: the same after a resumption.
"""


class ShardLoader:
    """Endless batches for one process of a run, read and decoded by ``workers`` of its own.

    Every worker of every process is a part of the stream. ``state_dict()`` is exact after any
    batch, whatever the workers have prepared meanwhile; a run that goes on from it needs the same
    number of processes and workers, and each process its own state. ``batch_size`` is that of this
    process. ``report`` sums up the workers' reports. ``options.epochs`` must be None, since parts
    differ in length and processes that train together need equally many batches.
    """

    def __init__(
        self,
        shards: str | os.PathLike[str] | Iterable[str | os.PathLike[str]],
        batch_size: int,
        collate: Collate,
        options: ShardOptions | None = None,
        process: int = 0,
        num_processes: int = 1,
        workers: int = 0,
    ):
        options = options or ShardOptions()
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {batch_size}")
        if options.epochs is not None:
            raise ValueError(f"epochs must be None for endless batches, got {options.epochs}")
        self.batch_size, self.collate, self.workers = batch_size, collate, workers
        parts = max(workers, 1)
        names = list_shards(shards)
        streams = [
            ShardStream(names, options, process * parts + worker, num_processes * parts)
            for worker in range(parts)
        ]
        self._streams = streams
        self._states = [stream.state_dict() for stream in streams]
        self._next = 0

    @property
    def report(self) -> SkipReport:
        """What this process was given so far, and what was skipped for it."""
        return total_report([self.state_dict()])

    def state_dict(self) -> State:
        """Where the batches stand, after the one given last."""
        return {"next": self._next, "parts": list(self._states)}

    def load_state_dict(self, state: State) -> None:
        """Go on from ``state``. ShardError if it is of another run, process or worker."""
        if len(state["parts"]) != len(self._streams):
            raise ShardError(
                f"the state is of {len(state['parts'])} workers, there are {len(self._streams)}"
            )
        for stream, part in zip(self._streams, state["parts"], strict=True):
            stream.load_state_dict(part)
        self._states, self._next = list(state["parts"]), state["next"]

    def __iter__(self) -> Iterator[Any]:
        for stream, state in zip(self._streams, self._states, strict=True):
            stream.load_state_dict(state)
        batches = _PartBatches(self._streams, self.batch_size, self.collate, self._next)
        pinned = torch.cuda.is_available()
        loader = DataLoader(batches, batch_size=None, num_workers=self.workers, pin_memory=pinned)
        try:
            for part, state, batch in loader:
                # States travel as text, which no collation or pinning changes.
                self._states[part] = json.loads(state)
                self._next = (part + 1) % len(self._streams)
                yield batch
        except ShardError as error:
            # A worker's message comes at the end of its traceback.
            reason = str(error).rstrip().splitlines()[-1]
            raise ShardError(reason.removeprefix(f"{__name__}.ShardError: ")) from None


def total_report(states: Iterable[State]) -> SkipReport:
    """What the loaders of several processes gave and skipped, by their ``state_dict()``."""
    parts = [part for state in states for part in state["parts"]]
    return sum((SkipReport(**part["report"]) for part in parts), SkipReport())


class _PartBatches(IterableDataset):
    """In each worker: the batches of one part, with the part's number and state.

    The loader takes turns among its workers and begins with the first, which must therefore be the
    part whose turn it is.
    """

    def __init__(self, streams: list[ShardStream], batch_size: int, collate: Collate, first: int):
        self.streams, self.batch_size, self.collate = streams, batch_size, collate
        self.first = first

    def __iter__(self) -> Iterator[tuple[int, str, Any]]:
        worker = get_worker_info()
        part = (self.first + (worker.id if worker else 0)) % len(self.streams)
        stream = self.streams[part]
        with closing(iter(stream)) as examples:
            while True:
                draws = stream.generator()
                batch = self.collate(islice(examples, self.batch_size), draws)
                yield part, json.dumps(stream.state_dict()), batch
