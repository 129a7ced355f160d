import math

import pytest
import torch
from torch.func import hessian

from mmlab.objectives.contrastive import contrastive_loss
from mmlab.widgets import LossLaboratory
from mmlab.widgets.loss_laboratory import (
    OBJECTIVES,
    alignment,
    on_circle,
    starting_angles,
    uniformity,
)
from tests.browser import needs_chromium
from tests.widgets.figure_page import ANSWER_TIMES, boards, settle

SETTINGS = {
    "softmax": {"objective": "softmax", "scale": 14.285714},
    "softmax, cold": {"objective": "softmax", "scale": 100.0},
    "sigmoid": {"objective": "sigmoid", "scale": 10.0, "bias": -10.0},
    "sigmoid, no bias": {"objective": "sigmoid", "scale": 3.0, "bias": 0.0},
}
every_setting = pytest.mark.parametrize("options", SETTINGS.values(), ids=SETTINGS)


# ---- The reference, written out apart from the package


def reference_loss(angles, objective, scale, bias=0.0):
    logits = scale * torch.cos(angles[0][:, None] - angles[1][None, :])
    if objective == "softmax":
        rows, columns = logits.log_softmax(dim=1), logits.log_softmax(dim=0)
        return -(rows.diagonal() + columns.diagonal()).mean() / 2
    signs = 2 * torch.eye(len(logits), dtype=logits.dtype) - 1
    return -torch.sigmoid(signs * (logits + bias)).log().sum() / len(logits)


def forces_of(angles, options):
    angles = angles.clone().requires_grad_()
    reference_loss(angles, **options).backward()
    return -angles.grad


# ---- Python


@every_setting
def test_loss_and_forces_agree_with_the_reference(options):
    laboratory = LossLaboratory(seed=3, **options)
    angles = laboratory.angles()
    assert laboratory.loss().item() == pytest.approx(reference_loss(angles, **options).item())
    assert torch.allclose(laboratory.forces(), forces_of(angles, options), atol=1e-9)


def test_all_in_one_place_is_no_rest_but_balance():
    laboratory = LossLaboratory(image_angles=[1.0] * 5, text_angles=[1.0] * 5)
    assert laboratory.loss().item() == pytest.approx(math.log(5))
    assert laboratory.forces().abs().max() < 1e-12
    assert laboratory.measures() == (0.0, 0.0)
    # Some direction leads down from there: the balance is not a minimum.
    curvature = hessian(lambda a: contrastive_loss(*map(on_circle, a), 10.0))(laboratory.angles())
    assert torch.linalg.eigvalsh(curvature.reshape(10, 10)).min() < -0.1


def test_measures_by_hand():
    square = on_circle(torch.tensor([0.0, 1, 2, 3]) * math.pi / 2)
    assert alignment(square, -square).item() == pytest.approx(4.0)
    assert alignment(square, square.roll(1, 0)).item() == pytest.approx(2.0)
    # Of six pairs four are at squared distance 2 and two at 4.
    expected = math.log((4 * math.exp(-4) + 2 * math.exp(-8)) / 6)
    assert uniformity(square).item() == pytest.approx(expected)


def test_starting_angles_follow_the_seed_around_the_whole_circle():
    assert starting_angles(4, 5) == starting_angles(4, 5) != starting_angles(4, 6)
    many = torch.tensor(starting_angles(2000, 1)[0])
    assert 0 <= many.min() < 0.05 and 6.23 < many.max() < 2 * math.pi
    assert on_circle(many).mean(dim=0).norm() < 0.06


WRONG = {
    "one pair": ({"names": ["a"]}, "names has 1 pairs; allowed are 2 to 8"),
    "nine pairs": ({"names": "abcdefghi"}, "names has 9 pairs; allowed are 2 to 8"),
    "objective": ({"objective": "hinge"}, "objective='hinge'; allowed are softmax, sigmoid"),
    "scale": ({"scale": 0.5}, "scale=0.5; allowed are 1 to 100"),
    "bias": ({"bias": 30.0}, "bias=30.0; allowed are -20 to 20"),
    "rate": ({"learning_rate": 0.0}, "learning_rate=0.0; allowed are 0.01 to 1"),
    "angles": ({"image_angles": [0.0]}, "image_angles=.*; allowed are 5 finite radians"),
    "nan": ({"text_angles": [math.nan] * 5}, "text_angles=.*; allowed are 5 finite radians"),
    "selected": ({"selected": 10}, "selected=10; allowed are 0 to 9"),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_values_are_told_what_is_allowed(case):
    options, message = WRONG[case]
    with pytest.raises(ValueError, match=message):
        LossLaboratory(**options)


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_sentence_and_still_say_what_is_there(objective):
    laboratory = LossLaboratory(objective=objective)
    assert f"Loss {laboratory.loss().item():.3f}" in laboratory.sentence()
    assert laboratory.to_png() != LossLaboratory(objective=objective, seed=1).to_png()


# ---- The browser


def facts(page):
    nodes = page.locator(".fact b").all()
    return [float(node.get_attribute("data-value")) for node in nodes]


def table(page):
    """Angles and forces of all points; opens the table."""
    page.locator("details").first.evaluate("node => node.open = true")
    settle(page)
    rows = page.locator("tbody tr").all()
    read = ("angle", "net", "pull", "push")
    return {
        name: torch.tensor(
            [float(row.get_attribute(f"data-{name}")) for row in rows], dtype=torch.float64
        ).view(2, -1)
        for name in read
    }


def press(page, key, times=1):
    for _ in range(times):
        page.keyboard.press(key)
    settle(page)


def place_of(canvas, angle, k, pairs=5):
    """Where point k is drawn: pictures 12 pixels outside the circle, captions 12 inside."""
    side = canvas.bounding_box()["width"]
    far = side * 0.33 + (12 if k < pairs else -12)
    return {"x": side / 2 + far * math.cos(angle), "y": side / 2 - far * math.sin(angle)}


def drag(page, canvas, start, end):
    box = canvas.bounding_box()
    page.mouse.move(box["x"] + start["x"], box["y"] + start["y"])
    page.mouse.down()
    page.mouse.move(box["x"] + end["x"], box["y"] + end["y"], steps=4)
    page.mouse.up()
    settle(page)


@pytest.mark.browser
@needs_chromium
class TestInBrowser:
    @every_setting
    def test_every_number_is_torch_s(self, show, options):
        laboratory = LossLaboratory(seed=4, **options)
        page = show(laboratory)
        loss, aligned, spread, steps = facts(page)
        assert loss == pytest.approx(reference_loss(laboratory.angles(), **options).item(), 1e-9)
        assert (aligned, spread) == pytest.approx(laboratory.measures(), rel=1e-9)
        assert steps == 0
        shown = table(page)
        expected = forces_of(laboratory.angles(), options)
        assert torch.allclose(shown["net"], expected, atol=1e-9)
        assert torch.allclose(shown["pull"] + shown["push"], expected, atol=1e-9)

    @every_setting
    def test_the_pull_is_the_partner_s_alone(self, show, options):
        laboratory = LossLaboratory(seed=4, **options)
        shown = table(show(laboratory))
        # Moving only the partner changes its own cosine only: the pull vanishes where it is 1.
        angles = laboratory.angles()
        turned = torch.sin(angles[1] - angles[0])
        assert (shown["pull"][0] * turned >= 0).all()
        assert torch.allclose(shown["pull"][0], -shown["pull"][1])
        met = LossLaboratory(image_angles=[0.0, 1, 2, 3, 4], text_angles=[0.0, 1, 2, 3, 4])
        shown = table(show(met))
        assert shown["pull"].abs().max() == 0 < shown["push"].abs().max()

    @pytest.mark.parametrize("objective", OBJECTIVES)
    def test_a_gradient_step_is_torch_s(self, show, objective):
        laboratory = LossLaboratory(objective=objective, scale=8.0, learning_rate=0.2)
        angles = laboratory.angles().requires_grad_()
        optimizer = torch.optim.SGD([angles], lr=0.2)
        page = show(laboratory)
        for _ in range(3):
            optimizer.zero_grad()
            laboratory.loss(angles).backward()
            optimizer.step()
            page.get_by_role("button", name="Gradient step").click()
        settle(page)
        assert facts(page)[3] == 3
        turns = (table(page)["angle"] - angles.detach()) / (2 * math.pi)
        assert (turns - turns.round()).abs().max() < 1e-9

    def test_many_steps_bring_the_pairs_together(self, show):
        page = show(LossLaboratory(seed=1))
        before = facts(page)
        button = page.locator("button.run")
        assert button.text_content() == "50 steps"
        for _ in range(4):
            button.click()
        settle(page)
        after = facts(page)
        assert after[3] == 200
        assert after[0] < before[0] / 2 and after[1] < before[1] / 2

    def test_running_can_be_paused(self, show):
        page = show(LossLaboratory(learning_rate=0.01), reduced_motion="no-preference")
        button = page.locator("button.run")
        button.click()
        page.wait_for_function("document.querySelector('[data-name=steps]').dataset.value > 5")
        assert button.text_content() == "Pause"
        button.click()
        settle(page)
        assert button.text_content() == "Run"
        stopped = facts(page)
        page.wait_for_timeout(100)
        assert facts(page) == stopped

    def test_reset_draws_the_seed_s_angles(self, show):
        page = show(LossLaboratory(seed=7))
        page.get_by_role("button", name="Gradient step").click()
        page.get_by_label("Seed").fill("12")
        page.get_by_role("button", name="Reset").click()
        settle(page)
        assert facts(page)[3] == 0
        expected = torch.tensor(starting_angles(5, 12), dtype=torch.float64)
        assert torch.allclose(table(page)["angle"], expected, atol=1e-12)

    @pytest.mark.parametrize("k", [1, 8], ids=["picture", "caption"])
    def test_a_point_can_be_dragged(self, show, k):
        angles = [0.3, 1.5, 2.7, 4.0, 5.2]
        laboratory = LossLaboratory(image_angles=angles, text_angles=[a + 0.5 for a in angles])
        page = show(laboratory)
        (circle,) = boards(page)
        start = laboratory.angles().flatten()[k].item()
        drag(page, circle, place_of(circle, start, k), place_of(circle, start - 1.0, k))
        moved = table(page)["angle"].flatten() - laboratory.angles().flatten()
        assert moved[k].item() == pytest.approx(-1.0, abs=0.02)
        assert torch.cat([moved[:k], moved[k + 1 :]]).abs().max() < 1e-9
        name = page.get_by_label("Chosen point").evaluate("s => s.selectedOptions[0].textContent")
        assert name == ("2: picture 2" if k == 1 else "4: caption 4")

    def test_keyboard_alone_is_enough(self, show):
        laboratory = LossLaboratory(image_angles=[0.0, 1, 2, 3, 4], text_angles=[0.5] * 5)
        page = show(laboratory)
        (circle,) = boards(page)
        circle.focus()
        press(page, "ArrowUp", 2)
        assert "Chosen: 3: picture 3" in circle.get_attribute("aria-label")
        press(page, "ArrowLeft", 4)
        press(page, "ArrowRight")
        assert table(page)["angle"][0, 2].item() == pytest.approx(2 + math.radians(9))
        press(page, "ArrowDown", 3)
        assert "Chosen: 5: caption 5" in circle.get_attribute("aria-label")
        page.get_by_label("Its angle").focus()
        press(page, "ArrowRight")
        assert table(page)["angle"][1, 4].item() == pytest.approx(math.radians(30), abs=1e-9)

    def test_the_bias_stands_beside_the_loss_that_has_one(self, show):
        page = show(LossLaboratory())
        assert not page.get_by_label("Bias").is_visible()
        page.locator(".segment:has(input[value=sigmoid])").click()
        settle(page)
        bias = page.get_by_label("Bias")
        assert bias.is_visible()
        before = facts(page)[0]
        bias.focus()
        press(page, "ArrowRight", 4)
        options = {"objective": "sigmoid", "scale": 10.0}
        angles = LossLaboratory().angles()
        assert before == pytest.approx(reference_loss(angles, bias=-10.0, **options).item())
        assert facts(page)[0] == pytest.approx(reference_loss(angles, bias=-8.0, **options).item())

    def test_temperature_by_keyboard(self, show):
        page = show(LossLaboratory())
        slider = page.get_by_role("slider", name="Temperature")
        slider.focus()
        press(page, "End")
        assert slider.get_attribute("aria-valuetext") == "1 (cosines × 1)"
        press(page, "Home")
        assert slider.get_attribute("aria-valuetext") == "0.01 (cosines × 100)"
        angles = LossLaboratory().angles()
        assert facts(page)[0] == pytest.approx(reference_loss(angles, "softmax", 100.0).item())

    def test_every_move_of_the_slider_is_drawn(self, show):
        page = show(LossLaboratory([str(k) for k in range(8)]))
        page.locator("details").first.evaluate("node => node.open = true")
        settle(page)
        spent = page.evaluate(ANSWER_TIMES)
        assert len(spent) == 15 and min(spent) > 0
