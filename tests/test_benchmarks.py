"""The benchmarks: the PyTorch networks are the same networks, and ratios are what they say."""

import numpy as np
import pytest


def test_the_growth_fit_finds_the_exponent_of_a_power():
    from benchmarks import growth

    x = np.array([8, 16, 32])
    assert growth.exponent(x, 3 * x**1.5) == 1.5


def test_the_ratio_is_ours_over_the_fastest_torch_and_its_spread_comes_from_the_rounds():
    pytest.importorskip("torch")
    from benchmarks import bench

    times = {"ours": [2.0, 2.0, 4.0], "torch": [4.0, 4.0, 4.0], "torch compile": [2.0, 4.0, 5.0]}
    times = {name: np.array(t) for name, t in times.items()}
    row = bench.row("glide 32 forward", 1.0, times, {}, 1)
    # Medians 2, 4 and 4: the first of equals is best; rounds 0.5, 0.5, 1.
    assert row["ratio"] == 0.5 and row["best"] == "torch" and row["spread"] == [0.5, 0.75]
    assert bench.picture([row]).size[1] > 0


def test_a_variant_that_torch_cannot_compile_is_left_out_and_others_errors_are_not():
    torch = pytest.importorskip("torch")
    from benchmarks import bench

    def broken():
        raise torch._dynamo.exc.TorchDynamoException("no")

    times, first = bench.race({"ours": lambda: 0, "torch compile": broken}, rounds=2)
    assert list(times) == ["ours"] and first["torch compile"] is None
    with pytest.raises(ZeroDivisionError):
        bench.race({"ours": lambda: 1 / 0}, rounds=2)


@pytest.mark.parametrize("name", ["glide", "ldm", "autoencoder"])
def test_the_torch_networks_compute_what_ours_do(name):
    pytest.importorskip("torch")
    from benchmarks import cases

    build, _ = cases.CASES[name]
    build(16)  # compares outputs and counts; a difference raises
