"""Feature and tag files of OSCAR and VinVL, written here as their code reads them, and spoiled."""

import base64
import json

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from mmlab.datasets.regions import FeatureFileError, OscarTSV, TagTSV, collate_regions, tag_text
from mmlab.nn.region_locations import corner_size_locations

DIM = 8
COUNTS = {"coco_9": 3, "coco_25": 5, "flickr_7": 1}


def rows_of(image_id):
    """One row a box: its feature, then (x1, y1, x2, y2, width, height) as shares of the image."""
    rng = np.random.default_rng(len(image_id) + COUNTS[image_id])
    n = COUNTS[image_id]
    x, y = np.sort(rng.uniform(0, 1, (n, 2))), np.sort(rng.uniform(0, 1, (n, 2)))
    location = [x[:, 0], y[:, 0], x[:, 1], y[:, 1], x[:, 1] - x[:, 0], y[:, 1] - y[:, 0]]
    features = rng.standard_normal((n, DIM))
    return np.concatenate([features, np.stack(location, 1)], 1).astype(np.float32)


def b64(array):
    return base64.b64encode(array).decode()


def as_json(image_id, rows=None, **changes):
    rows = rows_of(image_id) if rows is None else rows
    told = {"num_boxes": len(rows), "features": b64(rows)} | changes
    return f"{image_id}\t{json.dumps(told)}"


def as_columns(image_id, rows=None, count=None):
    rows = rows_of(image_id) if rows is None else rows
    return f"{image_id}\t{count or len(rows)}\t{b64(rows)}"


def with_a_column_more(image_id):
    """As where a file keeps something else between the number of boxes and the features."""
    name, count, features = as_columns(image_id).split("\t")
    return f"{name}\t{count}\t2054\t{features}"


def write(path, lines):
    path.write_text("\n".join(lines) + "\n")
    return path


FORMS = {"json": as_json, "columns": as_columns, "four columns": with_a_column_more}


@pytest.mark.parametrize("form", FORMS)
def test_features_of_all_forms(tmp_path, form):
    data = OscarTSV(write(tmp_path / "features.tsv", map(FORMS[form], COUNTS)))
    assert data.ids == list(COUNTS) and len(data) == 3 and data.feature_dim == DIM
    for row, image_id in enumerate(COUNTS):
        truth = rows_of(image_id)
        for regions in (data[row], data.find(image_id)):
            assert np.array_equal(regions.features[0].numpy(), truth[:, :DIM])
            assert np.array_equal(regions.boxes[0].numpy(), truth[:, DIM : DIM + 4])
            assert regions.image_sizes.tolist() == [[1, 1]] and regions.mask.all()


def test_the_network_gets_the_numbers_of_the_file(tmp_path):
    regions = OscarTSV(write(tmp_path / "f.tsv", map(as_json, COUNTS)))[1]
    locations = corner_size_locations(regions.boxes, regions.image_sizes)
    whole = torch.cat([regions.features, locations], dim=-1)[0]
    torch.testing.assert_close(whole, torch.from_numpy(rows_of("coco_25")), rtol=0, atol=1e-6)


def test_loading_in_batches_and_the_index(tmp_path):
    path, index = write(tmp_path / "f.tsv", map(as_columns, COUNTS)), tmp_path / "index.json"
    data = OscarTSV(path, index=index)
    (batch,) = DataLoader(data, batch_size=3, collate_fn=collate_regions)
    assert batch.num_regions.tolist() == list(COUNTS.values())
    assert json.loads(index.read_text())["ids"] == list(COUNTS)
    assert OscarTSV(path, index=index).find("flickr_7").num_regions.tolist() == [1]
    with pytest.raises(KeyError, match="no row for image 'coco_1'"):
        data.find("coco_1")


def spoiled(change):
    rows = rows_of("coco_25")
    change(rows)
    return rows


def exchange_sizes(rows):
    rows[:, -2:] = rows[:, [-1, -2]]


def in_pixels(rows):
    rows[:, DIM:] *= 640


def upside_down(rows):
    rows[0, DIM:] = [0.5, 0.5, 0.4, 0.4, -0.1, -0.1]


def not_finite(place):
    def change(rows):
        rows[1, place] = np.nan

    return change


LOCATION = r"last six numbers of a box must be \(x1, y1, x2, y2, width, height\)"
DAMAGES = [
    ("coco_25", "there is 1 column, not an id and features"),
    ("coco_25\t{", "the second column is no JSON"),
    ('coco_25\t[{"num_boxes": 5}]', "the JSON has no 'features'"),
    (as_json("coco_25", num_boxes="five"), "num_boxes is 'five', no whole number"),
    (as_json("coco_25", num_boxes=0), "num_boxes is 0; it must be 1 or more"),
    (as_json("coco_25", num_boxes=None), "num_boxes is None, no whole number"),
    (as_json("coco_25", num_boxes=4), "features has 280 bytes; num_boxes is 4, which needs a mult"),
    (as_json("coco_25", features=[1.0]), "features is not base64"),
    (as_json("coco_25", features="????"), "features is not base64"),
    (as_json("coco_25", features=""), "features has 0 bytes"),
    (as_columns("coco_25", count=3), "features has 280 bytes; num_boxes is 3"),
    (as_json("coco_25", rows_of("coco_25")[:, :6].copy()), "features are 6 numbers a box; six of"),
    (as_json("coco_25", rows_of("coco_25")[:, 1:].copy()), "are 7 numbers a box, the first row's"),
    (as_json("coco_25", spoiled(exchange_sizes)), LOCATION),
    (as_json("coco_25", spoiled(in_pixels)), LOCATION),
    (as_json("coco_25", spoiled(not_finite(DIM + 1))), LOCATION),
    (as_json("coco_25", spoiled(not_finite(0))), "features hold a value that is not finite"),
    (as_json("coco_25", spoiled(upside_down)), "box 0 of image 0 is"),
]


@pytest.mark.parametrize(("line", "message"), DAMAGES)
def test_damaged_rows_name_file_row_and_reason(tmp_path, line, message):
    lines = [as_json("coco_9"), line, as_json("flickr_7")]
    data = OscarTSV(write(tmp_path / "f.tsv", lines))
    assert data[2].num_regions.tolist() == [1]
    with pytest.raises(FeatureFileError, match=rf"f\.tsv', row 1 \(image coco_25.*{message}"):
        data[1]


def test_files_that_cannot_be_used(tmp_path):
    with pytest.raises(FeatureFileError, match=r"cannot read .*: No such file"):
        OscarTSV(tmp_path / "none.tsv")
    (tmp_path / "empty.tsv").write_bytes(b"")
    with pytest.raises(FeatureFileError, match="is empty"):
        OscarTSV(tmp_path / "empty.tsv")


# Tags

DETECTED = [
    {"class": "dog", "conf": 0.9, "rect": [1, 2, 30, 40.5]},
    {"class": "tennis ball", "conf": 0.5, "rect": [5, 5, 9, 9]},
    {"class": "dog"},
]


def tag_lines():
    true = {"objects": DETECTED, "gt_objects": [{"class": "wolf"}], "image_h": 480, "image_w": 640}
    return [
        f"a\t{json.dumps(DETECTED)}",
        f"b\t{json.dumps(true)}",
        f"c\t{json.dumps({'objects': DETECTED[:1]})}",
        "d\t[]",
    ]


def test_tags_keep_order_and_repetitions(tmp_path):
    data = TagTSV(write(tmp_path / "label.tsv", tag_lines()))
    tags = data.find("a")
    assert tag_text(tags) == "dog tennis ball dog"
    assert tags[0].confidence == 0.9 and tags[0].box == (1, 2, 30, 40.5)
    assert tags[2].confidence is tags[2].box is None
    assert [tag_text(tags) for tags in data] == ["dog tennis ball dog"] * 2 + ["dog", ""]


def test_true_labels_replace_detected_ones_where_there_are_any(tmp_path):
    data = TagTSV(write(tmp_path / "label.tsv", tag_lines()), ground_truth=True)
    assert [tag_text(tags) for tags in data] == ["dog tennis ball dog", "wolf", "dog", ""]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("x\t[]\t1", "there are 3 columns, not an id and tags"),
        ("x\t[{", "the second column is no JSON"),
        ("x\t{}", "the JSON has no 'objects'"),
        ('x\t"dog"', "tags must be a list, got str"),
        ('x\t["dog"]', "tag 0 has no 'class', a name"),
        ('x\t[{"class": "a"}, {"class": " "}]', "tag 1 has no 'class', a name"),
        ('x\t[{"class": "a", "conf": "high"}]', "'conf' of tag 0 must be a number"),
        ('x\t[{"class": "a", "rect": [1, 2, 3]}]', "'rect' of tag 0 must be"),
    ],
)
def test_damaged_tags(tmp_path, line, message):
    data = TagTSV(write(tmp_path / "label.tsv", [line]))
    with pytest.raises(FeatureFileError, match=rf"row 0 \(image x\): .*{message}"):
        data[0]
