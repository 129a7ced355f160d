"""Pages to show figures on, shared by the tests of all figures."""

import itertools

import pytest

from tests.browser import open_browser
from tests.widgets.figure_page import write_page

_numbers = itertools.count()


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    return tmp_path_factory.mktemp("site")


@pytest.fixture(scope="module")
def chromium(site):
    with open_browser(site) as new_page:
        yield new_page


@pytest.fixture
def show(chromium, site):
    """Opens figures on a fresh page; at the end nothing was asked for and nothing went wrong."""
    opened = []

    def show(*widgets, url=None, **options):
        path = write_page(site / f"page{next(_numbers)}.html", *widgets)
        page, log = chromium(**{"reduced_motion": "reduce", **options})
        opened.append((page, log))
        page.goto(url(path) if url else path.name)
        drawn = "document.querySelectorAll('.headline:not(:empty)').length >= {}"
        page.wait_for_function(drawn.format(len(widgets)))
        return page

    yield show
    for page, log in opened:
        page.context.close()
        assert log.external == []
        assert log.errors == []
