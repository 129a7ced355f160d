import json
import os
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from mmlab.tasks import image_index
from mmlab.tasks.image_index import NeighbourGraph, find_pictures, index_pictures, read_index


def colors(images):
    """The mean colour of each picture."""
    return torch.stack([image.float().mean((1, 2)) for image in images]) + 1


class Counting:
    def __init__(self):
        self.pictures = 0

    def __call__(self, images):
        self.pictures += len(images)
        return colors(images)


@pytest.fixture
def pictures(tmp_path):
    folder = tmp_path / "pictures"
    (folder / "deep").mkdir(parents=True)
    for name, color in {
        "red.png": (255, 0, 0),
        "green.jpg": (0, 255, 0),
        "deep/blue.webp": (0, 0, 255),
        "grey.gif": (128, 128, 128),
    }.items():
        Image.new("RGB", (9, 7), color).save(folder / name)
    (folder / "notes.txt").write_text("no picture")
    (folder / ".hidden.png").write_bytes(b"")
    return folder


def test_a_question_finds_its_picture(pictures, tmp_path):
    done = index_pictures(pictures, tmp_path / "index", colors, "mean colour")
    assert (done.added, done.kept, done.removed, done.broken) == (4, 0, 0, [])
    index = read_index(tmp_path / "index")
    hits = index.search(torch.tensor([0.0, 0.0, 5.0]), k=2)
    assert hits[0].path == pictures / "deep" / "blue.webp"
    assert hits[0].score == pytest.approx(1.0, abs=0.02) and hits[1].score < hits[0].score
    assert len(index.search(torch.ones(3), k=99)) == 4


def test_a_second_call_reads_only_what_is_new_or_changed(pictures, tmp_path):
    index_pictures(pictures, tmp_path / "index", colors, "m")
    again = Counting()
    assert index_pictures(pictures, tmp_path / "index", again, "m").kept == 4
    assert again.pictures == 0
    Image.new("RGB", (3, 3), (255, 255, 0)).save(pictures / "yellow.png")
    Image.new("RGB", (30, 3), (0, 0, 0)).save(pictures / "red.png")
    (pictures / "green.jpg").unlink()
    done = index_pictures(pictures, tmp_path / "index", again, "m")
    assert (done.added, done.kept, done.removed) == (2, 2, 2)
    assert again.pictures == 2
    names = [file.path for file in read_index(tmp_path / "index").files]
    assert sorted(names) == ["deep/blue.webp", "grey.gif", "red.png", "yellow.png"]


def test_it_goes_on_after_it_was_stopped(pictures, tmp_path, monkeypatch):
    monkeypatch.setattr(image_index, "PICTURES_A_PART", 2)
    seen = Counting()

    def stop_at_the_second_part(images):
        if seen.pictures == 2:
            raise KeyboardInterrupt
        return seen(images)

    with pytest.raises(KeyboardInterrupt):
        index_pictures(pictures, tmp_path / "index", stop_at_the_second_part, "m", batch_size=2)
    assert len(read_index(tmp_path / "index").files) == 2
    done = index_pictures(pictures, tmp_path / "index", Counting(), "m")
    assert (done.kept, done.added) == (2, 2)


def test_a_write_that_fails_leaves_the_index_whole(pictures, tmp_path, monkeypatch):
    def full(tensors, path, metadata):
        path.write_bytes(b"half")
        raise OSError("no space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("safetensors.torch.save_file", full)
        with pytest.raises(ValueError, match=r"could not write .* no space"):
            index_pictures(pictures, tmp_path / "index", colors, "m")
    with pytest.raises(ValueError, match="holds no pictures"):
        read_index(tmp_path / "index")
    assert index_pictures(pictures, tmp_path / "index", colors, "m").added == 4


def test_broken_files_are_reported_and_left_out(pictures, tmp_path):
    (pictures / "broken.png").write_bytes((pictures / "red.png").read_bytes()[:40])
    (pictures / "page.jpg").write_text("<html>")
    done = index_pictures(pictures, tmp_path / "index", colors, "m")
    assert done.added == 4
    assert [name for name, _ in done.broken] == ["broken.png", "page.jpg"]
    assert "is not an image" in done.broken[1][1]


def test_names_of_every_kind(tmp_path):
    folder = tmp_path / "猫 und Hund\n"
    folder.mkdir()
    for name in ("一只猫.png", 'it\'s a "cat".PNG', "a,b;c.jpeg"):
        Image.new("RGB", (2, 2)).save(folder / name)
    assert index_pictures(folder, tmp_path / "index", colors, "m").added == 3
    hits = read_index(tmp_path / "index").search(torch.ones(3), k=3)
    assert all(hit.path.is_file() for hit in hits)


def test_an_index_is_of_one_folder_and_one_model(pictures, tmp_path):
    index_pictures(pictures, tmp_path / "index", colors, "one")
    with pytest.raises(ValueError, match="is of model 'one', not 'two'"):
        index_pictures(pictures, tmp_path / "index", colors, "two")
    with pytest.raises(ValueError, match="is of pictures"):
        index_pictures(pictures / "deep", tmp_path / "index", colors, "one")


def test_missing_things_are_named(pictures, tmp_path):
    with pytest.raises(ValueError, match="no folder of pictures"):
        index_pictures(tmp_path / "nowhere", tmp_path / "index", colors, "m")
    assert not (tmp_path / "index").exists()
    with pytest.raises(ValueError, match="no index of pictures"):
        read_index(tmp_path / "index")


def test_a_damaged_index_is_named(pictures, tmp_path):
    index_pictures(pictures, tmp_path / "index", colors, "m")
    (part,) = (tmp_path / "index").glob("part-*")
    part.write_bytes(part.read_bytes()[:50])
    with pytest.raises(ValueError, match=r"part-000001.safetensors' is damaged"):
        read_index(tmp_path / "index")
    (tmp_path / "index" / "index.json").write_text(json.dumps({"model": "m"}))
    with pytest.raises(ValueError, match=r"index.json' cannot be read"):
        read_index(tmp_path / "index")


def test_an_empty_folder_has_an_empty_index(tmp_path):
    (tmp_path / "none").mkdir()
    assert index_pictures(tmp_path / "none", tmp_path / "index", colors, "m").added == 0
    assert find_pictures(tmp_path / "none") == []


def test_links_in_a_circle_end(pictures):
    os.symlink(pictures, pictures / "deep" / "circle")
    assert len(find_pictures(pictures)) == 4


def test_the_graph_finds_nearly_all_neighbours():
    pytest.importorskip("faiss")
    generator = torch.Generator().manual_seed(0)
    features = torch.nn.functional.normalize(torch.randn(3000, 16, generator=generator), dim=-1)
    queries = features[:100] + 0.1 * torch.randn(100, 16, generator=generator)
    exact = (queries @ features.T).topk(10).indices
    scores, rows = NeighbourGraph(features).search(queries, k=10)
    shared = np.mean(
        [len(set(a.tolist()) & set(b.tolist())) for a, b in zip(exact, rows, strict=True)]
    )
    assert shared > 9
    torch.testing.assert_close(scores[:, 0], (queries * features[rows[:, 0]]).sum(-1))


def test_a_graph_is_read_as_it_was_written(tmp_path):
    pytest.importorskip("faiss")
    features = torch.nn.functional.normalize(torch.randn(200, 8), dim=-1)
    graph, path = NeighbourGraph(features), tmp_path / "graph.faiss"
    graph.save(path)
    again = NeighbourGraph.load(path)
    for one, two in zip(graph.search(features, 3), again.search(features, 3), strict=True):
        assert torch.equal(one, two)
    assert [p.name for p in tmp_path.iterdir()] == ["graph.faiss"]
    path.write_bytes(b"no graph")
    for wrong in (path, tmp_path / "none"):
        with pytest.raises(ValueError, match="is no graph of neighbours"):
            NeighbourGraph.load(wrong)


def test_without_faiss_it_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "faiss", None)
    with pytest.raises(ImportError, match=r"pip install 'mmlab\[search\]'"):
        NeighbourGraph(torch.eye(3))
