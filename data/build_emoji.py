"""Build the emoji set in data/emoji/ from published packages, byte for byte the same each time.

    python data/build_emoji.py [--out FOLDER] [--cache FOLDER] [--workers NUMBER]

The drawings, the texts and the groups come from npm packages. Each is pinned by version and by the
SHA-512 of its archive, fetched once with ``npm pack`` and kept in the cache; after that no network
is needed. The drawings are rendered with resvg. ``data/emoji.md`` describes what comes out.
"""

from __future__ import annotations

import argparse
import base64
import hashlib
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from fractions import Fraction
from functools import partial
from importlib.metadata import version
from pathlib import Path

import numpy as np
import resvg_py
from PIL import Image

ROOT = Path(__file__).resolve().parents[1]
IMAGE_SIZE = 48
COLUMNS = 40
HELD_OUT_SHARE = Fraction(1, 10)
LANGUAGES = ("en", "zh")
REQUIRED_VENDORS = ("noto", "twemoji", "fluent")


class BuildError(Exception):
    """The set cannot be built; the message says why, in one sentence."""


@dataclass(frozen=True)
class Package:
    """An npm package, pinned."""

    name: str
    version: str
    license: str
    sha512: str

    @property
    def file_name(self) -> str:
        """The name that ``npm pack`` gives the archive."""
        return f"{self.name.removeprefix('@').replace('/', '-')}-{self.version}.tgz"


VENDORS = {
    "noto": Package(
        "@iconify-json/noto",
        "1.2.9",
        "Apache-2.0",
        "DQiuXENbun41ch+XPSV55H9FaWKpHTyz46YIKtSaKYD4fIDDzL1tR6H4np/T38jfrTAeI3rcKF0mqHYeZVAuaw==",
    ),
    "twemoji": Package(
        "@iconify-json/twemoji",
        "1.2.5",
        "CC-BY-4.0",
        "uKpuIEV0v6K5BW3Mjdyl+XKFVAbbcPxAgifKvEMtZoUZB5+YiY5zaMm2uNNCxyXzAWU9yNLlj41WU6/mvgALsw==",
    ),
    "emojione": Package(
        "@iconify-json/emojione",
        "1.2.3",
        "CC-BY-4.0",
        "T9+T3HIbJNLKKsmxYKlaYhvnHYkz/HNYTV7SHCXVZPfeUi4FqskY70YeN8yYAZT8cCv7w5vJxS4Q1m8zb9CMMg==",
    ),
    "noto-v1": Package(
        "@iconify-json/noto-v1",
        "1.2.5",
        "Apache-2.0",
        "/DsVMius69Q0fRS53z7QK1TROSuar606jiIx+laXtdsYGMXpf6LtHBx6CGfoo3UHHb/XpBsw+1L1x3eyPqMuVA==",
    ),
    "fluent": Package(
        "@iconify-json/fluent-emoji-flat",
        "1.2.6",
        "MIT",
        "RY47RgPb47fYUiyrA64sIOL0+UU02s29sXpNBbIQRBUlPlfNFTKUmZDERGuxDs/7yNGWqQYvuaSYM1M4fRXlUw==",
    ),
    "openmoji": Package(
        "@iconify-json/openmoji",
        "1.2.29",
        "CC-BY-SA-4.0",
        "vXdhkqcXVSO6suy+m9LbcUM3OdVyuNOtpV8/als/WqfkQIRxevL5Geb/g+6GH/Qwnq1OqksEmaDGTCmZ5nFKJQ==",
    ),
}
ANNOTATIONS = Package(
    "cldr-annotations-full",
    "48.2.0",
    "Unicode-3.0",
    "DV7A+rEcgUSNTRsVGNGqBZRmAkGfwhGHO5Q1dRwzBoBnVrHWp804JP7/QJdEc66iHmx3+zLWVIMCFLm0lW7PUQ==",
)
ANNOTATIONS_DERIVED = Package(
    "cldr-annotations-derived-full",
    "48.2.0",
    "Unicode-3.0",
    "log62km+AOzI7n/NEuNNFV0mg9DWnt67EYCh1RwxZq9dyRuyteB586LT83Ke8TchEfnwI9cIk2P31zO4nTvZmw==",
)
UNICODE_NAMES = Package(
    "unicode-emoji-json",
    "0.9.0",
    "MIT",
    "HdrQW/7SdbXUsTd8uTATv7LvQJkCSgbAgRCDCtOhQ6xn3EAx+xZHQtRniOXWJK3ywIqPegkNhP4U4EbuFsiQng==",
)
SUBGROUPS = Package(
    "emoji.json",
    "16.0.0",
    "MIT",
    "OWFSIAA5ZY2D7KTPxnS/oZTk5cs4ZE4+w/bHkpS+t6hj4AUwDH0okBGuffvsli6WMIimfgxb8ofadPC+UR+glw==",
)
PACKAGES = (*VENDORS.values(), ANNOTATIONS, ANNOTATIONS_DERIVED, UNICODE_NAMES, SUBGROUPS)

# Places, not things to see: their names do not describe them, and Fluent does not draw them.
EXCLUDED_SUBGROUPS = ("country-flag", "subdivision-flag")

# Both sets know one icon named "cricket", the game; by its name it would pass for the insect too.
WRONG_DRAWINGS = {("emojione", "1f997"), ("noto-v1", "1f997")}

# Man, woman, person, the signs ♀ and ♂, the arrow of "facing right", and the joiner.
VARIANT_CODES = {"1f468", "1f469", "1f9d1", "2640", "2642", "27a1", "200d"}


@dataclass(frozen=True)
class Concept:
    """One emoji with its text; ``key`` is what ``normalize`` makes of its code points."""

    key: str
    emoji: str
    unicode_name: str
    group: str
    subgroup: str
    names: dict[str, str]
    keywords: dict[str, list[str]]


@dataclass(frozen=True)
class Drawing:
    """The inside of an SVG image and the size of its canvas."""

    body: str
    width: float
    height: float
    flipped: bool = False

    def svg(self) -> str:
        """The whole SVG image."""
        body = self.body
        if self.flipped:
            body = f'<g transform="translate({self.width} 0) scale(-1 1)">{body}</g>'
        return (
            '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
            f'viewBox="0 0 {self.width} {self.height}">{body}</svg>'
        )


# 1. Packages: fetched once, checked always.


def fetch(package: Package, cache: Path) -> Path:
    """The package's archive in the cache, checked; fetched with npm where it is missing."""
    archive = cache / package.file_name
    if not archive.exists():
        cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=cache) as aside:
            fetched = npm_pack(package, Path(aside))
            check_integrity(package, fetched)
            os.replace(fetched, archive)
    check_integrity(package, archive)
    return archive


def npm_pack(package: Package, folder: Path) -> Path:
    """Download the archive of ``package`` into ``folder``."""
    npm = shutil.which("npm")
    if npm is None:
        raise BuildError(f"npm is not installed; it is needed to fetch {package.name}")
    command = [npm, "pack", f"{package.name}@{package.version}", "--pack-destination", str(folder)]
    result = subprocess.run(command, capture_output=True, text=True, cwd=folder)
    archive = folder / package.file_name
    if result.returncode or not archive.exists():
        lines = [line for line in result.stderr.splitlines() if "npm error" in line]
        why = lines[0].removeprefix("npm error ") if lines else "it wrote no archive"
        raise BuildError(f"npm could not fetch {package.name}@{package.version}: {why}")
    return archive


def check_integrity(package: Package, archive: Path) -> None:
    """Raise BuildError unless the archive is the one that was pinned."""
    digest = base64.b64encode(hashlib.sha512(archive.read_bytes()).digest()).decode()
    if digest != package.sha512:
        raise BuildError(
            f"{package.name}@{package.version} is not the pinned archive: {archive} has SHA-512 "
            f"{digest}, expected {package.sha512}; delete the file and try again"
        )


def read_json(package: Package, cache: Path, member: str) -> dict | list:
    """One JSON file out of a package."""
    with tarfile.open(cache / package.file_name) as archive:
        return json.load(archive.extractfile(f"package/{member}"))


# 2. Concepts: emoji, names, keywords, groups.


def normalize(codes: Iterable[str]) -> str:
    """Hexadecimal code points as one key: lower case, no variation selector.

    Vendors disagree on leading zeros and on U+FE0F, which asks for the colored form.
    """
    points = (int(code, 16) for code in codes)
    return "-".join(f"{point:x}" for point in points if point != 0xFE0F)


def emoji_key(emoji: str) -> str:
    """The key of an emoji given as text."""
    return normalize(f"{ord(character):x}" for character in emoji)


def read_annotations(cache: Path, language: str) -> dict[str, dict]:
    """CLDR's name (``tts``) and keywords (``default``) of every emoji, by key."""
    sources = [(ANNOTATIONS, "annotations"), (ANNOTATIONS_DERIVED, "annotationsDerived")]
    texts = {}
    for package, field in sources:
        file = read_json(package, cache, f"{field}/{language}/annotations.json")
        entries = file[field]["annotations"].items()
        texts |= {emoji_key(emoji): entry for emoji, entry in entries}
    return {key: entry for key, entry in texts.items() if "tts" in entry and "default" in entry}


def read_concepts(cache: Path) -> list[Concept]:
    """Every emoji that has a subgroup and text in all languages, in Unicode's order."""
    entries = read_json(SUBGROUPS, cache, "emoji.json")
    subgroups = {normalize(entry["codes"].split()): entry["subgroup"] for entry in entries}
    texts = {language: read_annotations(cache, language) for language in LANGUAGES}
    concepts = []
    for emoji, entry in read_json(UNICODE_NAMES, cache, "data-by-emoji.json").items():
        key = emoji_key(emoji)
        if subgroups.get(key, EXCLUDED_SUBGROUPS[0]) in EXCLUDED_SUBGROUPS:
            continue
        if not all(key in texts[language] for language in LANGUAGES):
            continue
        concepts.append(
            Concept(
                key=key,
                emoji=emoji,
                unicode_name=entry["name"],
                group=entry["group"],
                subgroup=subgroups[key],
                names={language: texts[language][key]["tts"][0] for language in LANGUAGES},
                keywords={language: texts[language][key]["default"] for language in LANGUAGES},
            )
        )
    return concepts


def family(key: str) -> str:
    """What the man, the woman and the person of one emoji have in common."""
    codes = key.split("-")
    return "-".join(code for code in codes if code not in VARIANT_CODES) or key


def held_out_keys(concepts: list[Concept]) -> set[str]:
    """The keys that are never trained on: in every group, whole families up to about a tenth.

    Families are taken in the order of a hash, so that the choice is arbitrary but fixed. They stay
    whole so that no held-out concept has its twin, in the other gender, among the training ones.
    """
    held_out = set()
    for group in sorted({concept.group for concept in concepts}):
        keys = [concept.key for concept in concepts if concept.group == group]
        wanted, chosen = round(HELD_OUT_SHARE * len(keys)), set()
        for name in sorted({family(key) for key in keys}, key=stable_hash):
            members = {key for key in keys if family(key) == name}
            if len(chosen | members) <= wanted:
                chosen |= members
        held_out |= chosen
    return held_out


def stable_hash(text: str) -> str:
    """A hash that is the same in every run and on every machine."""
    return hashlib.sha256(text.encode()).hexdigest()


# 3. Drawings: which vendor has which, and rendering.


def read_icon_names(cache: Path) -> dict[str, str]:
    """The key that belongs to each icon name, from the vendors that list code points."""
    names = {}
    for vendor in ("twemoji", "noto"):
        listed = read_json(VENDORS[vendor], cache, "chars.json").items()
        names |= {name: normalize(codes.split("-")) for codes, name in listed}
    return names


def read_drawings(vendor: str, cache: Path, icon_names: dict[str, str]) -> dict[str, Drawing]:
    """A vendor's drawings by key: by the code points it lists, else by the name of the icon."""
    icons = read_json(VENDORS[vendor], cache, "icons.json")
    listed = read_json(VENDORS[vendor], cache, "chars.json")
    known = (name for name in [*icons["icons"], *icons["aliases"]] if name in icon_names)
    named = {icon_names[name]: name for name in known}
    named |= {normalize(codes.split("-")): name for codes, name in listed.items()}
    found = {key: find_drawing(icons, name) for key, name in named.items()}
    return {
        key: drawing
        for key, drawing in found.items()
        if drawing is not None and (vendor, key) not in WRONG_DRAWINGS
    }


def find_drawing(icons: dict, name: str) -> Drawing | None:
    """The icon ``name``, through one alias if need be; None where an alias rotates."""
    alias = icons["aliases"].get(name, {"parent": name})
    if set(alias) - {"parent", "hFlip"} or alias["parent"] not in icons["icons"]:
        return None
    icon = icons["icons"][alias["parent"]]
    width, height = (icon.get(side, icons[side]) for side in ("width", "height"))
    return Drawing(icon["body"], width, height, alias.get("hFlip", False))


def render(drawing: Drawing) -> np.ndarray:
    """The drawing on white, uint8 ``(IMAGE_SIZE, IMAGE_SIZE, 3)``; fonts play no part."""
    png = resvg_py.svg_to_bytes(
        svg_string=drawing.svg(),
        width=IMAGE_SIZE,
        height=IMAGE_SIZE,
        background="#ffffff",
        skip_system_fonts=True,
    )
    image = Image.open(io.BytesIO(bytes(png))).convert("RGB")
    # A canvas that is not square fills one side only; it goes to the middle of a white square.
    square = Image.new("RGB", (IMAGE_SIZE, IMAGE_SIZE), "white")
    square.paste(image, ((IMAGE_SIZE - image.width) // 2, (IMAGE_SIZE - image.height) // 2))
    return np.asarray(square)


def worker_pool(workers: int) -> ProcessPoolExecutor:
    """Processes that leave Ctrl-C to the main one: one stopped halfway would lock the others."""
    ignore = partial(signal.signal, signal.SIGINT, signal.SIG_IGN)
    return ProcessPoolExecutor(workers, initializer=ignore)


def render_vendor(drawings: dict[str, Drawing], workers: int) -> dict[str, np.ndarray]:
    """All drawings of a vendor; of drawings that look the same, only the first stays."""
    with worker_pool(workers) as pool:
        images = dict(zip(drawings, pool.map(render, drawings.values(), chunksize=64), strict=True))
    seen: set[bytes] = set()
    return {
        key: image
        for key, image in images.items()
        if image.tobytes() not in seen and not seen.add(image.tobytes())
    }


def contact_sheet(images: list[np.ndarray]) -> Image.Image:
    """The images in rows of COLUMNS, from the top left; the rest of the last row is white."""
    rows = -(-len(images) // COLUMNS)
    tiles = np.full((rows * COLUMNS, IMAGE_SIZE, IMAGE_SIZE, 3), 255, np.uint8)
    tiles[: len(images)] = images
    grid = tiles.reshape(rows, COLUMNS, IMAGE_SIZE, IMAGE_SIZE, 3).swapaxes(1, 2)
    return Image.fromarray(grid.reshape(rows * IMAGE_SIZE, COLUMNS * IMAGE_SIZE, 3))


# 4. Files: sheets, concepts, manifest.


def build(folder: Path, cache: Path, workers: int) -> None:
    """Write the whole set into ``folder``, which must be empty."""
    for package in PACKAGES:
        fetch(package, cache)
    concepts = read_concepts(cache)
    icon_names = read_icon_names(cache)
    images = {}
    for vendor in VENDORS:
        start = time.perf_counter()
        drawings = read_drawings(vendor, cache, icon_names)
        wanted = {c.key: drawings[c.key] for c in concepts if c.key in drawings}
        images[vendor] = render_vendor(wanted, workers)
        progress(f"{vendor:9} {len(wanted):5} drawings rendered", start)
    concepts = [c for c in concepts if all(c.key in images[v] for v in REQUIRED_VENDORS)]
    write_sheets(folder, concepts, images, workers)
    write_concepts(folder, concepts, images)
    write_manifest(folder)


def write_sheets(
    folder: Path, concepts: list[Concept], images: dict[str, dict[str, np.ndarray]], workers: int
) -> None:
    """One lossless WebP image a vendor, its drawings in the order of the concepts."""
    write = partial(write_sheet, folder, concepts)
    with worker_pool(workers) as pool:
        list(pool.map(write, images, images.values()))


def write_sheet(
    folder: Path, concepts: list[Concept], vendor: str, images: dict[str, np.ndarray]
) -> None:
    """The sheet of one vendor."""
    start = time.perf_counter()
    sheet = contact_sheet([images[c.key] for c in concepts if c.key in images])
    sheet.save(folder / f"{vendor}.webp", lossless=True, quality=75, method=6)
    progress(f"{vendor:9} sheet written", start)


def write_concepts(
    folder: Path, concepts: list[Concept], images: dict[str, dict[str, np.ndarray]]
) -> None:
    """The table of concepts, one a line, and each vendor's source and licence."""
    held_out = held_out_keys(concepts)
    rows = []
    for concept in concepts:
        row = asdict(concept)
        row["code_points"] = [f"U+{ord(c):04X}" for c in concept.emoji]
        row["vendors"] = [vendor for vendor in VENDORS if concept.key in images[vendor]]
        row["split"] = "held_out" if concept.key in held_out else "train"
        rows.append(row)
    vendors = {
        vendor: {"package": p.name, "version": p.version, "license": p.license}
        for vendor, p in VENDORS.items()
    }
    head = {"image_size": IMAGE_SIZE, "columns": COLUMNS, "languages": LANGUAGES}
    lines = [
        "{",
        *(f"{dump(key)}: {dump(value)}," for key, value in (head | {"vendors": vendors}).items()),
        '"concepts": [',
        ",\n".join(dump(row) for row in rows),
        "]}",
    ]
    write_text(folder / "concepts.json", "\n".join(lines) + "\n")


def dump(value: object) -> str:
    """Compact JSON with Chinese left readable."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def write_manifest(folder: Path) -> None:
    """Size and SHA-256 of every file, and what they were made with."""
    files = sorted(path for path in folder.iterdir() if path.name != "manifest.json")
    manifest = {
        "built_with": {name: version(name) for name in ("pillow", "resvg-py")},
        "packages": {p.name: {"version": p.version, "sha512": p.sha512} for p in PACKAGES},
        "files": {
            path.name: {
                "bytes": path.stat().st_size,
                "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
            }
            for path in files
        },
    }
    write_text(folder / "manifest.json", json.dumps(manifest, indent=2) + "\n")


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 with Unix line ends on every system."""
    path.write_bytes(text.encode("utf-8"))


def progress(message: str, start: float) -> None:
    """Say what is done and how long it took."""
    print(f"  {message}  {time.perf_counter() - start:.1f} s", flush=True)


# 5. The command.


def replace_folder(new: Path, out: Path) -> None:
    """Put ``new`` in the place of ``out``; a failure leaves the old folder as it was."""
    if not out.exists():
        os.rename(new, out)
        return
    old = new.with_name("old")
    os.rename(out, old)
    try:
        os.rename(new, out)
    except BaseException:  # Ctrl-C too
        os.rename(old, out)
        raise


def check_replaceable(out: Path) -> None:
    """Raise BuildError when ``out`` holds anything but an emoji set: it would be deleted."""
    if not out.exists():
        return
    if not out.is_dir():
        raise BuildError(f"--out {out} is not a folder")
    ours = {"concepts.json", "manifest.json", ".keep", *(f"{vendor}.webp" for vendor in VENDORS)}
    foreign = sorted({path.name for path in out.iterdir()} - ours)
    if foreign:
        raise BuildError(f"--out {out} holds {foreign[0]!r}, which is no part of an emoji set")


def digests(folder: Path) -> dict[str, str]:
    """SHA-256 of every file of a folder; nothing where there is no folder."""
    files = folder.iterdir() if folder.is_dir() else ()
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def report(before: dict[str, str], out: Path) -> None:
    """Say how large the set is and which files are not what they were."""
    total = sum(path.stat().st_size for path in out.iterdir())
    changed = sorted(name for name, digest in digests(out).items() if before.get(name) != digest)
    verdict = f"changed: {', '.join(changed)}" if changed else "every byte as before"
    print(f"{out}: {total / 1e6:.2f} MB, {verdict}")


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description="Build the emoji set from its npm packages.")
    parser.add_argument("--out", type=Path, default=ROOT / "data" / "emoji")
    parser.add_argument("--cache", type=Path, default=ROOT / ".cache" / "npm")
    parser.add_argument("--workers", type=int, default=2, choices=range(1, 65), metavar="1-64")
    return parser.parse_args()


def main() -> None:
    """Build aside, then put the finished folder in its place."""
    arguments = parse_arguments()
    out = arguments.out.resolve()
    before = digests(out)
    try:
        check_replaceable(out)
        out.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".emoji-", dir=out.parent) as aside:
            new = Path(aside) / "new"
            new.mkdir()
            build(new, arguments.cache.resolve(), arguments.workers)
            replace_folder(new, out)
        report(before, out)
    except (BuildError, OSError) as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit("error: interrupted; nothing was changed")


if __name__ == "__main__":
    main()
