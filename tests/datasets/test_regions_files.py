"""Published feature files, written here as their projects wrote them, and spoiled on purpose."""

import base64
import csv
import json
import os
import pickle
import sys
import zipfile
from collections import OrderedDict
from io import BytesIO

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from mmlab.datasets.regions import (
    FeatureFileError,
    FeatureLMDB,
    FeatureTSV,
    collate_regions,
    stream_tsv,
)
from mmlab.datasets.regions.plain_pickle import PlainPickleError, read_plain_pickle
from mmlab.datasets.regions.tsv import BOTTOM_UP, LXMERT, VILBERT
from mmlab.nn.region_locations import corner_size_area_locations

DIM, CLASSES = 8, 6
COUNTS = {"139": 3, "285": 5, "632": 1}


def arrays(image_id):
    """What the detector said of one image."""
    rng = np.random.default_rng(int(image_id))
    n = COUNTS[image_id]
    x, y = np.sort(rng.uniform(0, 640, (n, 2))), np.sort(rng.uniform(0, 480, (n, 2)))
    soft = rng.random((n, CLASSES)) ** 4
    return {
        "boxes": np.stack([x[:, 0], y[:, 0], x[:, 1], y[:, 1]], 1).astype(np.float32),
        "features": rng.standard_normal((n, DIM)).astype(np.float32),
        "cls_prob": (soft / soft.sum(1, keepdims=True)).astype(np.float32),
        "objects_id": rng.integers(0, CLASSES - 1, n),
        "objects_conf": rng.random(n).astype(np.float32),
        "attrs_id": rng.integers(0, 400, n),
        "attrs_conf": rng.random(n).astype(np.float32),
    }


def fields(image_id):
    """The columns of every layout; LXMERT's names beside those of bottom-up attention."""
    row = {name: base64.b64encode(value).decode() for name, value in arrays(image_id).items()}
    row |= {"image_id": image_id, "img_id": image_id, "num_boxes": str(COUNTS[image_id])}
    return row | {"image_w": "640", "img_w": "640", "image_h": "480", "img_h": "480"}


def tsv(path, columns=BOTTOM_UP, rows=None):
    """As ``generate_tsv.py`` does it: csv with tabs, lines that end in carriage return, newline."""
    with open(path, "w", newline="") as file:
        writer = csv.DictWriter(file, columns, delimiter="\t", extrasaction="ignore")
        for row in rows or map(fields, COUNTS):
            writer.writerow(row)
    return path


def changed(image_id="285", **values):
    return [fields(i) | (values if i == image_id else {}) for i in COUNTS]


def check_row(regions, image_id):
    truth = arrays(image_id)
    assert np.array_equal(regions.features[0].numpy(), truth["features"])
    assert np.array_equal(regions.boxes[0].numpy(), truth["boxes"])
    assert regions.image_sizes.tolist() == [[640, 480]]
    assert regions.mask.all() and regions.num_regions.tolist() == [COUNTS[image_id]]


# ---------------------------------------------------------------------------------------------- TSV


@pytest.mark.parametrize("columns", [BOTTOM_UP, VILBERT, LXMERT], ids=["six", "seven", "ten"])
def test_rows_of_all_layouts(tmp_path, columns):
    data = FeatureTSV(tsv(tmp_path / "f.tsv", columns))
    assert len(data) == 3 and data.ids == list(COUNTS) and data.feature_dim == DIM
    for row, image_id in enumerate(COUNTS):
        check_row(data[row], image_id)
        check_row(data.find(image_id), image_id)
        check_row(data.find(int(image_id)), image_id)
    check_row(data[-1], "632")
    assert [r.num_regions.item() for r in data] == [3, 5, 1]


def test_width_and_height_are_not_exchanged(tmp_path):
    """LXMERT's files have the height first."""
    data = FeatureTSV(tsv(tmp_path / "f.tsv", LXMERT))
    assert (tmp_path / "f.tsv").read_text().split("\t")[1:3] == ["480", "640"]
    assert data[0].image_sizes.tolist() == [[640, 480]]


def test_labels(tmp_path):
    soft = FeatureTSV(tsv(tmp_path / "a.tsv", VILBERT))[1]
    assert np.array_equal(soft.class_distributions[0].numpy(), arrays("285")["cls_prob"])
    assert soft.classes is soft.attributes is None
    hard, truth = FeatureTSV(tsv(tmp_path / "b.tsv", LXMERT))[1], arrays("285")
    assert hard.classes[0].tolist() == truth["objects_id"].tolist()
    assert hard.confidences[0].tolist() == truth["objects_conf"].tolist()
    assert hard.attributes[0, :, 0].tolist() == truth["attrs_id"].tolist()
    assert hard.attribute_confidences[0, :, 0].tolist() == truth["attrs_conf"].tolist()
    assert hard.class_distributions is None


def test_columns_by_name(tmp_path):
    columns = ("image_id", "notes", *LXMERT[1:], "cls_prob")
    rows = [fields(i) | {"notes": "a dog"} for i in COUNTS]
    path = tsv(tmp_path / "f.tsv", columns, rows)
    regions = FeatureTSV(path, columns=columns)[1]
    check_row(regions, "285")
    assert regions.classes is not None and regions.class_distributions is not None
    with pytest.raises(
        FeatureFileError, match=r"12 columns; the known layouts have 6, 7, 10, name"
    ):
        FeatureTSV(path)


def test_streaming_gives_the_same_rows(tmp_path):
    path = tsv(tmp_path / "f.tsv", VILBERT)
    told = list(stream_tsv(path))
    assert [image_id for image_id, _ in told] == list(COUNTS)
    for image_id, regions in told:
        check_row(regions, image_id)


def test_streaming_reads_no_further_than_it_must(tmp_path):
    path = tsv(tmp_path / "f.tsv", rows=changed("632", boxes="!"))
    stream = stream_tsv(path)
    next(stream), next(stream)
    with pytest.raises(FeatureFileError, match="row 2"):
        next(stream)


def test_random_access_reads_one_line_alone(tmp_path, monkeypatch):
    data, lines = FeatureTSV(tsv(tmp_path / "f.tsv")), []
    true_line = FeatureTSV._line
    monkeypatch.setattr(
        FeatureTSV, "_line", lambda s, i: lines.append(true_line(s, i)) or lines[-1]
    )
    data[2]
    assert [line.split(b"\t")[0] for line in lines] == [b"632"]


def test_a_last_line_without_newline(tmp_path):
    path = tsv(tmp_path / "f.tsv")
    path.write_bytes(path.read_bytes().rstrip(b"\r\n"))
    check_row(FeatureTSV(path)[2], "632")


@pytest.mark.parametrize("num_workers", [0, 2])
def test_loading_in_batches(tmp_path, num_workers):
    data = FeatureTSV(tsv(tmp_path / "f.tsv", LXMERT))
    (batch,) = DataLoader(data, batch_size=3, collate_fn=collate_regions, num_workers=num_workers)
    assert batch.num_regions.tolist() == list(COUNTS.values())
    assert torch.equal(batch.boxes[0, :3], data[0].boxes[0]) and not batch.boxes[0, 3:].any()


def test_the_index_is_kept_and_made_anew_when_the_file_changes(tmp_path):
    path, index = tsv(tmp_path / "f.tsv"), tmp_path / "f.index.json"
    FeatureTSV(path, index=index)
    kept = json.loads(index.read_text())
    assert kept["ids"] == list(COUNTS) and kept["starts"][0] == 0
    # Shown to be read: a false index that fits the file's size and time is believed.
    index.write_text(json.dumps(kept | {"ids": ["a", "b", "c"]}))
    assert FeatureTSV(path, index=index).ids == ["a", "b", "c"]
    tsv(path, rows=[fields("632"), fields("139")])
    assert FeatureTSV(path, index=index).ids == ["632", "139"]
    check_row(FeatureTSV(path, index=index).find("139"), "139")
    index.write_text("{")
    assert FeatureTSV(path, index=index).ids == ["632", "139"]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["f.index.json", "f.tsv"]


def test_images_that_are_missing_or_twice(tmp_path):
    path = tsv(tmp_path / "f.tsv", rows=[fields("139"), fields("285"), fields("139")])
    data = FeatureTSV(path)
    check_row(data[2], "139")
    with pytest.raises(KeyError, match=r"rows \[0, 2\] for image '139'"):
        data.find("139")
    with pytest.raises(KeyError, match="no row for image 7"):
        data.find(7)
    with pytest.raises(IndexError, match="3 is out of range"):
        data[3]


def b64(values):
    return base64.b64encode(values).decode()


FOUR_BOXES = arrays("285")["boxes"][:4].copy()
FLIPPED = arrays("285")["boxes"][:, [2, 1, 0, 3]].copy()
NOT_FINITE = np.full((5, DIM), np.nan, np.float32)
SHORTER = arrays("285")["features"][:, :4].copy()

DAMAGES = [
    ({"num_boxes": "five"}, r"num_boxes is b'five', no whole number"),
    ({"num_boxes": "0"}, "num_boxes is 0; it must be 1 or more"),
    ({"image_w": "-640"}, "image_w is -640; it must be 1 or more"),
    ({"boxes": "!!!!"}, "boxes is not base64"),
    ({"boxes": fields("285")["boxes"][:-3]}, "boxes is not base64"),
    ({"boxes": b64(FOUR_BOXES)}, "boxes has 64 bytes; num_boxes is 5, which needs 80"),
    ({"boxes": b64(FLIPPED)}, "box 0 of image 0 is .*; it must be"),
    ({"features": ""}, "features has 0 bytes; num_boxes is 5, which needs a multiple of 20"),
    ({"features": b64(b"1234")}, "features has 4 bytes"),
    ({"features": b64(NOT_FINITE)}, "features hold a value that is not finite"),
    ({"features": b64(SHORTER)}, "features are 4 numbers a box, the first row's are 8"),
    ({"cls_prob": b64(np.ones((5, CLASSES), np.float32))}, "class_distributions must .* sum to 1"),
]


@pytest.mark.parametrize(("damage", "message"), DAMAGES)
def test_damaged_rows_name_file_row_and_reason(tmp_path, damage, message):
    path = tsv(tmp_path / "f.tsv", VILBERT, changed(**damage))
    where = r"'.*f\.tsv', row 1 \(image 285\): "
    data = FeatureTSV(path)
    with pytest.raises(FeatureFileError, match=where + message):
        data[1]
    with pytest.raises(FeatureFileError, match=where + message):
        list(stream_tsv(path))
    check_row(data[0], "139"), check_row(data[2], "632")


def test_a_file_that_breaks_off(tmp_path):
    path = tsv(tmp_path / "f.tsv")
    whole = path.read_bytes()
    last = whole.rstrip().rindex(b"\n") + 1
    for cut in (last + 2, last + 20, len(whole) - 10, len(whole) - 6):
        path.write_bytes(whole[:cut])
        data = FeatureTSV(path)
        check_row(data[1], "285")
        with pytest.raises(FeatureFileError, match="row 2"):
            data[2]


def test_files_that_are_none(tmp_path):
    (tmp_path / "empty.tsv").touch()
    with pytest.raises(FeatureFileError, match=r"empty\.tsv' is empty"):
        FeatureTSV(tmp_path / "empty.tsv")
    with pytest.raises(FeatureFileError, match=r"cannot read '.*none\.tsv': No such file"):
        FeatureTSV(tmp_path / "none.tsv")
    with pytest.raises(FeatureFileError, match="cannot read"):
        list(stream_tsv(tmp_path / "none.tsv"))
    with pytest.raises(FeatureFileError, match="there is no features"):
        FeatureTSV(tsv(tmp_path / "f.tsv"), columns=(*BOTTOM_UP[:-1], "featrues"))
    with pytest.raises(FeatureFileError, match="there are 6 columns, not the 7 of"):
        FeatureTSV(tmp_path / "f.tsv", columns=VILBERT)


# ------------------------------------------------------------------------------------ plain pickles

PLAIN = [
    {"image_id": "1", "num_boxes": 36, "boxes": b"\x00\xff" * 300, "more": ["é" * 300, 2**70, -1]},
    [b"139", b"285"] * 600,
    {str(i): i for i in range(1500)},
    OrderedDict(a=1, b=(1.5, None, True, False, ())),
    ((1, 2), (1, 2, 3), (1,), (1, 2, 3, 4), [[]], {}),
    "text",
    300,
    70_000,
]


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize("value", PLAIN, ids=range(len(PLAIN)))
def test_plain_values_come_back(protocol, value):
    if protocol < 3 and b"_codecs" in pickle.dumps(value, protocol):
        with pytest.raises(PlainPickleError, match=r"wants _codecs.encode"):
            read_plain_pickle(pickle.dumps(value, protocol))
        return
    told = read_plain_pickle(pickle.dumps(value, protocol))
    assert told == value
    assert type(told) is (dict if isinstance(value, OrderedDict) else type(value))


def test_shared_values_are_shared():
    shared = ["a"]
    told = read_plain_pickle(pickle.dumps({"x": shared, "y": shared}))
    assert told["x"] is told["y"]


class Bomb:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("protocol", range(6))
def test_no_code_is_run(tmp_path, protocol):
    with pytest.raises(PlainPickleError, match=r"wants (posix|nt)\.mkdir, and only an unpickler"):
        read_plain_pickle(pickle.dumps({"image_id": Bomb(tmp_path / "gone")}, protocol))
    assert not (tmp_path / "gone").exists()


@pytest.mark.parametrize(
    "value", [np.ones(3), {1, 2}, range(3), OrderedDict, np.float32(1), bytearray(b"a"), ValueError]
)
def test_other_values_are_refused(value):
    with pytest.raises(PlainPickleError):
        read_plain_pickle(pickle.dumps([value]))


def test_calls_of_the_one_known_class_are_refused_with_arguments():
    with pytest.raises(PlainPickleError, match="it calls a function"):
        read_plain_pickle(b"ccollections\nOrderedDict\n(]tR.")


def test_damaged_pickles_are_refused():
    whole = pickle.dumps(PLAIN[0])
    for cut in range(len(whole)):
        with pytest.raises(PlainPickleError):
            read_plain_pickle(whole[:cut])
    rng = np.random.default_rng(0)
    for _ in range(300):
        noise = bytearray(whole)
        noise[rng.integers(len(whole))] = rng.integers(256)
        try:
            read_plain_pickle(bytes(noise))
        except PlainPickleError as error:
            assert str(error)


# --------------------------------------------------------------------------------------------- LMDB


def write_lmdb(path, values, keys_key, keys_value):
    lmdb = pytest.importorskip("lmdb", reason="lmdb is missing: pip install 'mmlab[regions]'")
    with lmdb.open(str(path), map_size=2**24) as env, env.begin(write=True) as transaction:
        for key, value in values.items():
            transaction.put(key.encode(), value)
        transaction.put(keys_key, keys_value)
    return path


def vilbert(path, rows=None, protocol=3):
    """``pickle.dumps`` of a row of the TSV; rows were OrderedDict before Python 3.8."""
    rows = rows or {i: OrderedDict((n, fields(i)[n]) for n in VILBERT) for i in COUNTS}
    values = {i: pickle.dumps(row, protocol) for i, row in rows.items()}
    return write_lmdb(path, values, b"keys", pickle.dumps([i.encode() for i in rows]))


def normalised(image_id):
    boxes = arrays(image_id)["boxes"] / np.array([640, 480, 640, 480], np.float32)
    return np.concatenate([boxes, boxes[:, 2:] - boxes[:, :2]], 1)


def dump(image_id):
    truth = arrays(image_id)
    content = {
        "features": truth["features"],
        "norm_bb": normalised(image_id),
        "conf": truth["objects_conf"],
        "soft_labels": truth["cls_prob"],
    }
    return {name: value.astype(np.float16) for name, value in content.items()}


def npz(content):
    """``allow_pickle`` becomes an array of the file, as in the published ones."""
    file = BytesIO()
    np.savez_compressed(file, **content, **{"allow_pickle": np.array(True)})
    return file.getvalue()


def packed(content):
    msgpack = pytest.importorskip("msgpack", reason="pip install 'mmlab[regions]'")
    return msgpack.dumps({name: numpy_packed(a) for name, a in content.items()}, use_bin_type=True)


def numpy_packed(array):
    """The form of ``msgpack_numpy``."""
    return {
        b"nd": True,
        b"type": array.dtype.str,
        b"kind": b"",
        b"shape": array.shape,
        b"data": array.tobytes(),
    }


def uniter(path, values):
    return write_lmdb(path, values, b"__keys__", json.dumps(list(values)).encode())


@pytest.mark.parametrize("protocol", [2, 3, 4])
def test_vilbert(tmp_path, protocol):
    data = FeatureLMDB(vilbert(tmp_path / "f.lmdb", protocol=protocol), "vilbert")
    assert data.ids == list(COUNTS) and len(data) == 3
    for row, image_id in enumerate(COUNTS):
        check_row(data[row], image_id)
        check_row(data.find(int(image_id)), image_id)
    soft = data[1].class_distributions[0].numpy()
    assert np.array_equal(soft, arrays("285")["cls_prob"])
    assert [r.num_regions.item() for r in data] == [3, 5, 1]


@pytest.mark.parametrize("write", [npz, packed])
def test_uniter(tmp_path, write):
    names = {i: f"coco_{i}.npz" for i in COUNTS}
    path = uniter(tmp_path / "feat", {names[i]: write(dump(i)) for i in COUNTS})
    data = FeatureLMDB(path, "uniter")
    assert data.ids == list(names.values())
    for image_id, name in names.items():
        regions, truth = data.find(name), dump(image_id)
        assert np.array_equal(regions.features[0].numpy(), truth["features"].astype(np.float32))
        assert np.array_equal(regions.confidences[0].numpy(), truth["conf"].astype(np.float32))
        soft = regions.class_distributions[0].numpy()
        assert np.array_equal(soft, truth["soft_labels"].astype(np.float32))
        # Without the image's size: what the model is given comes out as from pixels.
        seven = corner_size_area_locations(regions.boxes, regions.image_sizes)[0].numpy()
        np.testing.assert_allclose(seven[:, :6], normalised(image_id), atol=1e-3)
        np.testing.assert_allclose(seven[:, 6], seven[:, 4] * seven[:, 5], rtol=1e-6)


@pytest.mark.parametrize("num_workers", [0, 2])
def test_databases_load_in_batches_and_twice(tmp_path, num_workers):
    path = vilbert(tmp_path / "f.lmdb")
    first, second = FeatureLMDB(path, "vilbert"), FeatureLMDB(path, "vilbert")
    for data in (first, second):
        loader = DataLoader(data, 3, collate_fn=collate_regions, num_workers=num_workers)
        assert next(iter(loader)).num_regions.tolist() == list(COUNTS.values())


@pytest.mark.parametrize(("damage", "message"), DAMAGES)
def test_damaged_values_name_file_image_and_reason(tmp_path, damage, message):
    message = message.replace("b'five'", "'five'")
    rows = {row["image_id"]: {n: row[n] for n in VILBERT} for row in changed(**damage)}
    data = FeatureLMDB(vilbert(tmp_path / "f.lmdb", rows), "vilbert")
    with pytest.raises(FeatureFileError, match=r"'.*f\.lmdb', image 285: " + message):
        data[1]
    check_row(data[2], "632")


def test_pickles_with_more_than_plain_values_are_refused(tmp_path):
    rows = {i: fields(i) | ({"boxes": Bomb(tmp_path / "x")} if i == "285" else {}) for i in COUNTS}
    rows["632"]["features"] = arrays("632")["features"]
    data = FeatureLMDB(vilbert(tmp_path / "f.lmdb", rows), "vilbert")
    with pytest.raises(FeatureFileError, match=r"image 285: it wants posix\.mkdir.*never loaded"):
        data[1]
    with pytest.raises(FeatureFileError, match=r"image 632: it wants numpy.*FeatureTSV"):
        data[2]
    assert not (tmp_path / "x").exists()


def test_values_that_are_no_rows(tmp_path):
    for value in ([1, 2], {1: 2}, "text"):
        path = vilbert(tmp_path / f"{len(list(tmp_path.iterdir()))}.lmdb", {"1": value})
        with pytest.raises(FeatureFileError, match="image 1: the value is no dictionary of fields"):
            FeatureLMDB(path, "vilbert")


def object_array():
    return {b"nd": True, b"type": "|O", b"kind": b"O", b"shape": (1,), b"data": pickle.dumps(1)}


def packed_raw(content):
    return pytest.importorskip("msgpack").dumps(content)


def object_npz():
    file = BytesIO()
    np.savez(file, features=np.array([{}], dtype=object))
    return file.getvalue()


def without_middle(data):
    """A zip whose directory still stands but whose first member is spoiled."""
    start = len(zipfile.ZipFile(BytesIO(data)).infolist()[0].filename) + 30
    return data[: start + 40] + b"\x00" * 30 + data[start + 70 :]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: npz(dump("285"))[:-40], "the .npz is damaged"),
        (lambda: without_middle(npz(dump("285"))), "the .npz is damaged"),
        (object_npz, r"the .npz is damaged \(Object arrays cannot be loaded"),
        (lambda: packed(dump("285"))[:-5], "the msgpack is damaged"),
        (lambda: b"\xc1", "the msgpack is damaged"),
        (lambda: packed_raw([1, 2]), "there is no features, norm_bb"),
        (lambda: packed_raw(7), "the msgpack is damaged"),
        (lambda: packed_raw({"features": object_array()}), "the msgpack is .* no plain array"),
        (lambda: npz({"norm_bb": normalised("285")}), "there is no features"),
        (lambda: npz(dump("285") | {"norm_bb": normalised("285")[:, :4]}), r"not \(…, 6\)"),
        (
            lambda: npz(dump("285") | {"norm_bb": normalised("285")[:, [1, 0, 3, 2, 4, 5]]}),
            r"norm_bb is not \(x1, y1, x2, y2, width, height\)",
        ),
        (lambda: npz(dump("285") | {"norm_bb": normalised("139")}), r"has the shape \(1, 5.*mask"),
        (lambda: npz(dump("285") | {"features": np.full((5, DIM), np.inf)}), "not finite"),
    ],
)
def test_damaged_arrays_name_file_image_and_reason(unchecked, tmp_path, make, message):
    path = uniter(tmp_path / "feat", {"a.npz": npz(dump("139")), "b.npz": make()})
    data = FeatureLMDB(path, "uniter")
    with pytest.raises(FeatureFileError, match=r"'.*feat', image b\.npz: .*" + message):
        data[1]
    assert data[0].num_regions.tolist() == [3]


def test_databases_that_are_none(tmp_path):
    pytest.importorskip("lmdb")
    with pytest.raises(FeatureFileError, match=r"cannot read '.*none' as LMDB.*No such file"):
        FeatureLMDB(tmp_path / "none", "vilbert")
    assert not (tmp_path / "none").exists()
    (tmp_path / "junk").write_bytes(b"x" * 9000)
    with pytest.raises(FeatureFileError, match=r"cannot read '.*junk' as LMDB"):
        FeatureLMDB(tmp_path / "junk", "vilbert")
    with pytest.raises(FeatureFileError, match="holds no image"):
        FeatureLMDB(write_lmdb(tmp_path / "empty", {}, b"keys", b"."), "vilbert")
    with pytest.raises(ValueError, match=r"layout is 'oscar'.*vilbert, uniter"):
        FeatureLMDB(tmp_path, "oscar")


def test_missing_images(tmp_path):
    data = FeatureLMDB(vilbert(tmp_path / "f.lmdb"), "vilbert")
    for name in ("7", "keys"):
        with pytest.raises(KeyError, match=f"image {name}: there is none"):
            data.find(name)
    with pytest.raises(IndexError, match="3 is out of range"):
        data[3]


def test_without_the_libraries_it_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "lmdb", None)
    with pytest.raises(ImportError, match=r"need lmdb; .* pip install 'mmlab\[regions\]'"):
        FeatureLMDB(tmp_path, "vilbert")
