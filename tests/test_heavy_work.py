"""Heavy work on each region: what the page computes, and that workers return the same."""

import numpy as np
from joblib import Parallel, cpu_count, delayed, parallel_config
from joblib.externals.loky import get_reusable_executor

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


def test_workers_return_what_one_process_returns():
    """A region's result does not depend on where or in which order it is computed."""
    regions = [np.random.default_rng(i).normal(size=(30, 5 + i)) for i in range(4)]
    serial = [bootstrap_first_component(series, 3) for series in regions]
    with parallel_config("loky", n_jobs=min(2, cpu_count()), inner_max_num_threads=1):
        results = Parallel(return_as="generator")(
            delayed(bootstrap_first_component)(series, 3) for series in regions
        )
        for a, b in zip(results, serial, strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-10)
    get_reusable_executor().shutdown(wait=True)
