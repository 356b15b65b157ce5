"""Heavy work on each region: the share of variance of the first component."""

import numpy as np

from beyond_the_masker.pages import load_page

bootstrap_first_component = load_page("plot_heavy_work").bootstrap_first_component


def test_one_component_or_many():
    """A region with a single time course has all variance in it; noise has little; none is 0."""
    rng = np.random.default_rng(0)
    one = np.outer(rng.normal(size=50), np.ones(8)).astype("float32")
    np.testing.assert_allclose(bootstrap_first_component(one, 5), 1, rtol=1e-5)
    noise = bootstrap_first_component(rng.normal(size=(2000, 8)), 5)
    assert ((noise > 1 / 8) & (noise < 0.2)).all()
    assert (bootstrap_first_component(np.ones((10, 3), "float32"), 2) == 0).all()
