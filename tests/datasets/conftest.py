"""What several tests of data sets share."""

import jaxtyping
import pytest


@pytest.fixture
def unchecked():
    """As in a user's run: no annotation is checked before our own words."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)
