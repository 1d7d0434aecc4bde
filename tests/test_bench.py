"""Programmes that are run by hand elsewhere, tried on this machine."""

import json

import pytest

from tests.bench.gpu_training import main


def test_the_gpu_benchmark_counts_the_arithmetic_of_a_step(capsys: pytest.CaptureFixture[str]) -> None:
    main("ViT-S-32-alt", batch=2, steps=1)
    facts = json.loads(capsys.readouterr().out)
    # A multiplication and an addition for each of 22.6 million weights and 50 tokens, once forward and twice backward.
    a_picture = 1e12 * facts["tflops"] / facts["images_per_second"]
    assert a_picture == pytest.approx(3 * 2 * 22.6e6 * 50, rel=0.5)
    assert facts["share"] == pytest.approx(facts["tflops"] / facts["matrix_product_tflops"], rel=0.1)
