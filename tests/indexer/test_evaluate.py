"""evaluate(): each figure against its protocol worked out apart; comparisons; the command line."""

import json
import re
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import typer
from PIL import Image
from typer.testing import CliRunner, Result

from indexer.encoder import Embeddings, Encoder, EncoderName
from indexer.errors import BuildError, EncoderError
from indexer.evaluate.command import evaluate as command
from indexer.evaluate.compare import compare
from indexer.evaluate.evaluation import evaluate, evaluate_encoded
from indexer.evaluate.queries import Kind
from indexer.evaluate.report import Evaluation, Figure, Report
from indexer.evaluate.task import CaptionChoice, EvaluateOptions, pick_examples
from indexer.images import DecodePolicy
from indexer.samples import Encoded, Sample, Samples, encode_samples, load_samples
from indexer.torch_runtime import torch
from indexer.vote import vote
from tests.conftest import POLICY
from tests.models import new_model, save_model

DIM = 16


class Unread:
    """A picture whose embedding is known; nobody reads it."""

    def read(self, policy: DecodePolicy) -> bytes:
        raise AssertionError(policy)


def unit(seed: int, rows: int) -> Embeddings:
    vectors = np.random.default_rng(seed).standard_normal((rows, DIM)).astype(np.float32)
    return np.asarray(vectors / np.linalg.norm(vectors, axis=1, keepdims=True), np.float32)


def known(
    embeddings: Embeddings,
    labels: Sequence[str | None],
    captions: Sequence[Sequence[str]] | None = None,
    **metadata: Sequence[Any],
) -> Encoded:
    """Return pictures whose embeddings are given, named by their rows."""
    samples = [
        Sample(
            f"{row}.png",
            label,
            () if captions is None else tuple(captions[row]),
            {name: values[row] for name, values in metadata.items()},
        )
        for row, label in enumerate(labels)
    ]
    return Encoded(Samples(samples, [Unread()] * len(samples), POLICY), embeddings, ())


def values(evaluation: Evaluation) -> dict[str, float]:
    return {name: figure.value for name, figure in evaluation.report.figures.items()}


@pytest.fixture
def drawn(source: Path) -> Samples:
    return load_samples(source / "table.csv", None, POLICY)


def draw_mosaics(folder: Path) -> Samples:
    """Draw 40 mosaics that lean, not always enough, to the colours of their five labels."""
    folder.mkdir()
    random = np.random.default_rng(0)
    colours = random.integers(0, 255, (5, 4, 4, 3))
    rows = ["path,label,caption"]
    for row in range(40):
        mosaic = 0.55 * random.integers(0, 255, (4, 4, 3)) + 0.45 * colours[row % 5]
        Image.fromarray(mosaic.astype(np.uint8).repeat(8, axis=0).repeat(8, axis=1)).save(folder / f"{row}.png")
        rows.append(f"{row}.png,kind {row % 5},mosaic {row // 2}")
    (folder / "table.csv").write_text("\n".join(rows))
    return load_samples(folder / "table.csv", None, POLICY)


def test_every_figure_of_drawn_pictures_is_its_protocol_written_out(tmp_path: Path, encoder: Encoder) -> None:
    samples = draw_mosaics(tmp_path / "mosaics")
    found = values(evaluate(encoder, samples, EvaluateOptions(templates=("a photo of a {}.", "{}"))))
    images = encode_samples(samples, encoder).embeddings
    labels = np.array([str(sample.label) for sample in samples])
    scores = images @ images.T
    precisions, first, votes = [], [], []
    for row in range(40):
        order = np.argsort(-scores[row], kind="stable")
        ranks = np.flatnonzero(labels[order] == labels[row]) + 1
        precisions.append(np.mean(np.arange(1, 9) / ranks))
        near = order[order != row]
        first.append(labels[near[0]] == labels[row])
        votes.append(next(iter(vote(labels[near[:21]].tolist(), scores[row, near[:21]], 0.1))))
    names = sorted(set(labels))
    prompts = [encoder.encode_texts([f"a photo of a {name}.", name]).mean(axis=0) for name in names]
    zero_shot = np.argmax(images @ np.stack([mean / np.linalg.norm(mean) for mean in prompts]).T, axis=1)
    texts = encoder.encode_texts([f"mosaic {row // 2}" for row in range(40)])
    gap = images.mean(axis=0) - texts.mean(axis=0)
    by_caption = np.argsort(-(texts[::2] @ images.T), axis=1, kind="stable")[:, :10]
    by_picture = np.argsort(-(images @ texts[::2].T), axis=1, kind="stable")[:, :5]
    expected = {
        "image_to_image_map": np.mean(precisions),
        "image_to_image_r1": np.mean(first),
        "knn_accuracy": np.mean(np.array(votes) == labels),
        "zero_shot_accuracy": np.mean(np.array(names)[zero_shot] == labels),
        "text_to_image_r10": np.mean((by_caption // 2 == np.arange(20)[:, None]).any(axis=1)),
        "image_to_text_r5": np.mean((by_picture == np.arange(40)[:, None] // 2).any(axis=1)),
        "modality_gap": gap @ gap,
    }
    assert {name: found[name] for name in expected} == pytest.approx(expected, rel=1e-4)
    assert all(0 < value < 1 for name, value in expected.items() if name != "modality_gap")


def test_pictures_that_are_encoded_already_are_evaluated_the_same(drawn: Samples, encoder: Encoder) -> None:
    encoded = encode_samples(drawn, encoder)
    ready = evaluate_encoded(encoder, encoded, EvaluateOptions())
    assert ready.report == evaluate(encoder, drawn, EvaluateOptions()).report


def test_what_cannot_be_decoded_is_counted_and_costs_itself(source: Path, encoder: Encoder) -> None:
    (source / "red" / "0.png").write_bytes(b"no picture")
    report = evaluate(encoder, load_samples(source / "table.csv", None, POLICY), EvaluateOptions()).report
    assert (report.pictures, report.skipped) == (23, 1)


def test_an_encoder_whose_training_diverged_is_refused(encoder: Encoder) -> None:
    sound, broken = known(unit(0, 4), list("aabb")), known(np.full((4, DIM), np.nan, np.float32), list("aabb"))
    for pictures, voters in ((broken, None), (sound, broken)):
        with pytest.raises(EncoderError, match="makes embeddings that are no numbers"):
            evaluate_encoded(encoder, pictures, EvaluateOptions(), voters)


# Captions

CAPTIONS = ["a red square", "two green stars", "a boat at sea", "snow", "an old clock", "people dancing"]


def test_pictures_that_lie_where_their_captions_do_are_always_found(encoder: Encoder) -> None:
    texts = encoder.encode_texts(CAPTIONS)
    found = values(
        evaluate_encoded(encoder, known(texts, [None] * 6, [[each] for each in CAPTIONS]), EvaluateOptions())
    )
    for way in ("text_to_image", "image_to_text"):
        assert [found[f"{way}_r{k}"] for k in (1, 5, 10)] == [1, 1, 1]
    assert found["modality_gap"] == pytest.approx(0, abs=1e-12)


def test_every_picture_that_carries_the_very_caption_is_right(encoder: Encoder) -> None:
    texts = encoder.encode_texts(CAPTIONS)
    # Of two pictures with the caption "snow", one lies where "snow" does and the other where "a red square" does.
    images = texts[[0, 3, 0]]
    encoded = known(images, [None] * 3, [["a red square"], ["snow"], ["snow"]])
    evaluation = evaluate_encoded(encoder, encoded, EvaluateOptions())
    assert evaluation.report.figures["text_to_image_r1"].queries == 2
    found = values(evaluation)
    assert found["text_to_image_r1"] == 1
    assert found["image_to_text_r1"] == pytest.approx(2 / 3)


def test_first_captions_alone_or_all_of_them_count(encoder: Encoder) -> None:
    texts = encoder.encode_texts(CAPTIONS)
    encoded = known(texts[:3], [None] * 3, [[CAPTIONS[3], CAPTIONS[0]], [CAPTIONS[1]], [CAPTIONS[2]]])
    all_of_them = evaluate_encoded(encoder, encoded, EvaluateOptions()).report
    first = evaluate_encoded(encoder, encoded, EvaluateOptions(captions=CaptionChoice.FIRST)).report
    assert all_of_them.figures["text_to_image_r1"].queries == 4
    assert first.figures["text_to_image_r1"].queries == 3
    assert all_of_them.figures["image_to_text_r1"].value == 1
    assert first.figures["image_to_text_r1"].value == pytest.approx(2 / 3)


def test_the_gap_is_to_every_caption_as_often_as_it_is_carried(encoder: Encoder) -> None:
    images = unit(0, 4)
    encoded = known(images, [None] * 4, [["snow"], ["snow", "an old clock"], ["snow"], []])
    texts = encoder.encode_texts(["snow", "an old clock"])
    gap = images[:3].mean(axis=0) - (3 * texts[0] + texts[1]) / 4
    found = values(evaluate_encoded(encoder, encoded, EvaluateOptions()))
    assert found["modality_gap"] == pytest.approx(float(gap @ gap), rel=1e-5)


def test_a_caption_is_drawn_with_the_first_picture_that_carries_it(encoder: Encoder) -> None:
    encoded = known(unit(0, 4), ["a", "b", None, "b"], [["snow"], ["sea", "snow"], ["fog", "sea"], []])
    captions = evaluate_encoded(encoder, encoded, EvaluateOptions()).queries.asked[Kind.CAPTION]
    assert captions.names.tolist() == ["snow", "sea", "fog"]
    assert captions.groups.tolist() == ["label a", "label b", "picture 2.png"]


def test_an_example_by_caption_shows_which_hits_carry_it(encoder: Encoder) -> None:
    texts = encoder.encode_texts(CAPTIONS[:3])
    # "a red square" finds its own picture and then others; "two green stars" finds the picture of another first.
    encoded = known(texts[[0, 2, 1]], ["x", None, "z"], [[CAPTIONS[0]], [CAPTIONS[1]], [CAPTIONS[2]]])
    report = evaluate_encoded(encoder, encoded, EvaluateOptions(examples=3)).report
    examples = {each.query: each for each in report.examples if each.kind is Kind.CAPTION}
    assert set(examples) == set(CAPTIONS[:3])
    order = np.argsort(-(texts @ texts[[0, 2, 1]].T), axis=1, kind="stable")
    for row, caption in enumerate(CAPTIONS[:3]):
        hits = examples[caption].hits
        assert [hit.picture for hit in hits] == [f"{each}.png" for each in order[row]]
        assert [hit.right for hit in hits] == [each == row for each in order[row]]
        assert examples[caption].score == 1 + order[row].tolist().index(row)


def test_pictures_without_caption_are_answers_and_no_queries(encoder: Encoder) -> None:
    texts = encoder.encode_texts(CAPTIONS)
    encoded = known(texts[[0, 0, 1]], [None] * 3, [[], [CAPTIONS[0]], [CAPTIONS[1]]])
    report = evaluate_encoded(encoder, encoded, EvaluateOptions()).report
    # The captionless copy comes first, by the order of the rows.
    assert report.figures["text_to_image_r1"].value == 0.5
    assert report.figures["image_to_text_r1"].queries == 2


# What the data cannot give


def test_without_labels_and_captions_there_are_no_figures_but_reasons(encoder: Encoder) -> None:
    report = evaluate_encoded(encoder, known(unit(0, 5), [None] * 5), EvaluateOptions()).report
    assert report.figures == {}
    no_label, no_caption = "No picture has a label (column 'label').", "No picture has a caption."
    assert report.absent == {
        "Image to image": no_label,
        "k-NN classification": no_label,
        "Zero-shot classification": no_label,
        "Text to image": no_caption,
        "Image to text": no_caption,
        "Modality gap": no_caption,
    }


@pytest.mark.parametrize(
    ("labels", "captions", "title", "reason"),
    [
        (["a", "b", "c"], ["x"] * 3, "Image to image", "No two pictures have the same label (column 'label')."),
        (["a"] * 3, ["x"] * 3, "k-NN classification", "All pictures that vote have the same label (column 'label')."),
        (["a"] * 3, ["x"] * 3, "Zero-shot classification", "All pictures have the same label (column 'label')."),
        (["1", "1", "2"], ["x"] * 3, "Zero-shot classification", "The labels (column 'label') are numbers, which"),
        (["a"] * 3, ["x"] * 3, "Text to image", "All captions are the same."),
        (["a"] * 3, ["x"] * 3, "Image to text", "All captions are the same."),
    ],
)
def test_what_would_say_nothing_is_absent(
    encoder: Encoder, labels: list[str], captions: list[str], title: str, reason: str
) -> None:
    encoded = known(unit(0, 3), labels, [[each] for each in captions])
    report = evaluate_encoded(encoder, encoded, EvaluateOptions()).report
    assert report.absent[title].startswith(reason)
    assert title not in {section.title for section in report.sections}


def test_an_index_that_the_pictures_are_too_few_for_is_absent_and_an_unknown_one_refused_at_once(
    encoder: Encoder, drawn: Samples
) -> None:
    encoded = known(unit(0, 24), ["a", "b"] * 12)
    report = evaluate_encoded(encoder, encoded, EvaluateOptions(index="IVF256,Flat")).report
    assert "FAISS cannot build IVF256,Flat over 24 vectors" in report.absent["Approximate index"]
    with pytest.raises(BuildError, match="FAISS knows no index 'Nonsense'"):
        evaluate(encoder, drawn, EvaluateOptions(index="Nonsense"))


def test_an_index_is_judged_by_picture_and_by_caption(encoder: Encoder) -> None:
    encoded = known(unit(0, 24), ["a", "b"] * 12, [[CAPTIONS[row % 6]] for row in range(24)])
    report = evaluate_encoded(encoder, encoded, EvaluateOptions(index="HNSW8")).report
    assert report.figures["index_recall_pictures"].queries == 24
    assert report.figures["index_recall_captions"].queries == 6
    assert report.figures["index_recall_pictures"].value > 0.9
    assert report.figures["index_speedup"].value > 0


def test_an_unknown_column_is_refused(encoder: Encoder, drawn: Samples) -> None:
    for options in (EvaluateOptions(label_column="klass"), EvaluateOptions(instance_column="klass")):
        with pytest.raises(BuildError, match="No picture has a column 'klass'; there are: label, size"):
            evaluate(encoder, drawn, options)


# Image to image


def test_instances_may_stand_in_another_column_than_classes(encoder: Encoder) -> None:
    images = unit(1, 12)
    images[6:] = images[:6]
    encoded = known(images, ["cat"] * 3 + ["dog"] * 3 + ["cat"] * 3 + ["dog"] * 3, thing=[1, 2, 3, 4, 5, 6] * 2)
    report = evaluate_encoded(encoder, encoded, EvaluateOptions(instance_column="thing")).report
    assert report.figures["image_to_image_map"].value == 1
    assert "column 'thing', 6 different" in report.sections[0].protocol
    assert "column 'label'" in report.sections[1].protocol


def test_leaving_the_query_out_leaves_out_those_that_are_alone_and_says_so(encoder: Encoder) -> None:
    encoded = known(unit(0, 5), ["a", "a", "b", "c", None])
    with_self = evaluate_encoded(encoder, encoded, EvaluateOptions()).report
    without = evaluate_encoded(encoder, encoded, EvaluateOptions(with_self=False)).report
    assert with_self.figures["image_to_image_map"].queries == 4
    assert without.figures["image_to_image_map"].queries == 2
    assert with_self.figures["image_to_image_r1"] == without.figures["image_to_image_r1"]
    assert "the query stays in the list and counts as a hit" in with_self.sections[0].protocol
    assert "with the query left out and without the 2 pictures that are alone" in without.sections[0].protocol


def gpr1200(images: Embeddings) -> Encoded:
    return known(images, [str(row // 2) for row in range(len(images))])


def test_the_domains_of_gpr1200_are_200_classes_each_in_the_order_of_their_numbers(encoder: Encoder) -> None:
    images = unit(0, 2_400)
    images[400:800:2] = images[401:800:2]  # of the second domain, all are found at once
    report = evaluate_encoded(encoder, gpr1200(images), EvaluateOptions(gpr1200=True, examples=0, resamples=20)).report
    found = {name: figure for name, figure in report.figures.items() if name.startswith("gpr")}
    assert list(found) == [
        "gpr1200_landmarks_map",
        "gpr1200_inaturalist_map",
        "gpr1200_imagenet_sketch_map",
        "gpr1200_instre_map",
        "gpr1200_sop_map",
        "gpr1200_imdb_faces_map",
        "gpr1000_map",
    ]
    domains = [figure.value for figure in found.values()][:6]
    assert domains[1] == 1
    assert max(domains[0], *domains[2:]) < 0.6
    assert [figure.queries for figure in found.values()] == [400] * 6 + [2_000]
    assert found["gpr1000_map"].value == pytest.approx(np.mean(domains[:5]))
    assert report.figures["image_to_image_map"].value == pytest.approx(np.mean(domains))
    # Unreadable pictures make the domains unequal; GPR1000 is still the mean of five.
    kept = np.r_[0:400, 400:2_400:2]
    encoded = gpr1200(images)
    fewer = Encoded(encoded.samples.subset(kept), images[kept], ())
    found = evaluate_encoded(encoder, fewer, EvaluateOptions(gpr1200=True, examples=0, resamples=20)).report.figures
    five = [found[name].value for name in list(found) if name.startswith("gpr1200")][:5]
    assert found["gpr1000_map"].value == pytest.approx(np.mean(five))


def test_fewer_classes_than_gpr1200s_have_no_domains_and_it_is_said(encoder: Encoder) -> None:
    report = evaluate_encoded(encoder, gpr1200(unit(0, 20)), EvaluateOptions(gpr1200=True)).report
    assert not any(name.startswith("gpr") for name in report.figures)
    assert "No figures by domain: GPR1200 has 1,200 classes, this set 10." in report.sections[0].protocol


# k-NN


def test_a_gallery_votes_instead_but_never_a_query_for_itself(encoder: Encoder) -> None:
    # The first query lies on its own copy in the gallery, labelled rightly; its next neighbour is wrong.
    images = np.eye(DIM, dtype=np.float32)[[0, 1]]
    queries = known(images, ["a", "b"])
    voters = known(np.stack([images[0], images[0], images[1]]), ["a", "b", "b"])
    report = evaluate_encoded(encoder, queries, EvaluateOptions(), voters).report
    # Named 0.png and 1.png, as the queries are: so "a" is left with two voters of "b".
    assert report.figures["knn_accuracy"].value == 0.5
    assert "The 2 nearest of a gallery of 3 pictures vote" in report.sections[0].protocol


def test_labels_that_no_voter_has_count_as_wrong_and_are_counted(encoder: Encoder) -> None:
    queries = known(unit(0, 4), ["a", "b", "c", "c"])
    voters = known(unit(0, 30), ["a", "b"] * 15)
    report = evaluate_encoded(encoder, queries, EvaluateOptions(), voters).report
    assert "2 queries have a label that no voter has, and count as wrong." in report.sections[1].protocol


def test_a_gallery_without_labels_cannot_vote(encoder: Encoder) -> None:
    queries, voters = known(unit(0, 4), ["a", "a", "b", "b"]), known(unit(1, 4), [None] * 4)
    report = evaluate_encoded(encoder, queries, EvaluateOptions(), voters).report
    assert report.absent["k-NN classification"] == "No gallery picture has a label (column 'label')."


def test_the_sweep_goes_as_far_as_the_gallery_and_holds_the_protocols_own_point(encoder: Encoder) -> None:
    report = evaluate_encoded(encoder, known(unit(0, 60), ["a", "b", "c"] * 20), EvaluateOptions()).report
    points = {(point.k, point.temperature): point.accuracy for point in report.sweep}
    assert {k for k, _ in points} == {1, 3, 5, 11, 21, 51}
    assert points[21, 0.1] == report.figures["knn_accuracy"].value


def test_of_many_classes_the_most_confused_are_shown(encoder: Encoder) -> None:
    # 34 classes whose two pictures are copies, and 6 that each lie on another's.
    images, labels = unit(0, 40), [f"{row:02}" for row in range(40)]
    images[34:] = images[28:34]
    encoded = known(np.concatenate([images, images]), labels * 2)
    confusion = evaluate_encoded(encoder, encoded, EvaluateOptions()).report.confusion
    assert confusion is not None
    assert confusion.classes == 40
    assert len(confusion.labels) == len(confusion.counts) == len(confusion.counts[0]) == 30
    assert set(labels[28:]) <= set(confusion.labels)
    # Whoever has the same neighbours at the same distance loses to the name that comes first.
    assert confusion.counts[confusion.labels.index("34")][confusion.labels.index("28")] == 2


def test_descriptions_classify_by_their_mean_similarity(encoder: Encoder) -> None:
    texts = encoder.encode_texts(["cat, which has fur", "dog, which has a bark"])
    images = np.stack([texts[0], texts[1], texts[1]])
    encoded = known(images, ["cat", "dog", "cat"])
    given = {"cat": ("fur",), "dog": ("bark",)}
    found = evaluate_encoded(encoder, encoded, EvaluateOptions(descriptions=given))
    scores = images @ encoder.encode_texts(["cat, which has fur", "dog, which has bark"]).T
    assert values(found)["zero_shot_description_accuracy"] == np.mean(scores.argmax(axis=1) == [0, 1, 0])


# Intervals and examples


def test_an_interval_needs_two_groups_and_the_seed_decides_it(encoder: Encoder) -> None:
    def found(**options: Any) -> Figure:
        return evaluated(encoder, 1, 1.0, **options).report.figures["image_to_image_map"]

    first, again, other = found(), found(), found(seed=1)
    assert first.interval is not None
    assert first.interval[0] < first.value < first.interval[1]
    assert first == again
    assert first.interval != other.interval
    one_group = known(unit(0, 8), list("aabbccdd"), thing=["x"] * 8)
    report = evaluate_encoded(encoder, one_group, EvaluateOptions(instance_column="thing")).report
    assert report.figures["image_to_image_map"].interval is None


def test_examples_are_the_best_the_middle_and_the_worst_of_different_groups() -> None:
    scores = np.array([0.9, 1.0, 0.1, 0.5, 0.6, 0.2, 1.0])
    groups = ["b", "a", "w", "m", "n", "x", "a"]
    assert pick_examples(scores, groups, 1) == {"best": [1], "median": [4], "worst": [2]}
    assert pick_examples(scores, groups, 2) == {"best": [1, 0], "median": [4, 3], "worst": [2, 5]}
    assert pick_examples(scores, groups, 0) == {"best": [], "median": [], "worst": []}
    assert pick_examples(scores[:1], groups[:1], 3) == {"best": [0], "median": [], "worst": []}


def test_an_example_shows_the_first_hits_without_the_query(encoder: Encoder) -> None:
    angles = np.array([0, 0.1, 0.3, 0.6])
    images = np.zeros((4, DIM), np.float32)
    images[:, 0], images[:, 1] = np.cos(angles), np.sin(angles)
    report = evaluate_encoded(encoder, known(images, list("abab")), EvaluateOptions(examples=1)).report
    best = report.examples[0]
    # From 0.png: 1 (wrong), 2 (right), 3 (wrong); from 1.png: 0, 2, 3 (right).
    assert (best.query, best.standing, best.label) == ("0.png", "best", "a")
    assert best.score == pytest.approx((1 + 2 / 3) / 2)
    assert [(hit.picture, hit.right) for hit in best.hits] == [("1.png", False), ("2.png", True), ("3.png", False)]


# Side by side


def evaluated(encoder: Encoder, draw: int, noise: float, name: str = "x", **options: Any) -> Evaluation:
    """Evaluate made-up embeddings: 20 instances of 3 pictures, around their centres."""
    centres, around = unit(100, 20), unit(draw, 60)
    images = np.repeat(centres, 3, axis=0) + np.float32(noise) * around
    images /= np.linalg.norm(images, axis=1, keepdims=True)
    labels = [f"thing {row // 3}" for row in range(60)]
    captions = [[f"caption {row // 2}"] for row in range(60)]
    return evaluate_encoded(encoder, known(images, labels, captions), EvaluateOptions(model=name, **options))


def test_the_table_is_the_papers_with_differences_to_the_first_model(encoder: Encoder) -> None:
    base, tuned = evaluated(encoder, 1, 1.4), evaluated(encoder, 1, 0.7)
    found = compare({"base": [base], "tuned": [tuned]})
    titles = [column.title for column in found.columns[: found.headlines]]
    assert titles == ["I2I mAP", "k-NN", "Zero-shot", "T2I R@5", "AVG"]
    for row, evaluation in zip(found.rows, (base, tuned), strict=True):
        cells = {column.name: cell.value for column, cell in zip(found.columns, row.cells, strict=True)}
        names = ("image_to_image_map", "knn_accuracy", "zero_shot_accuracy", "text_to_image_r5")
        assert cells.pop("average") == pytest.approx(np.mean([values(evaluation)[name] for name in names]))
        assert cells == values(evaluation)
    first, second = found.rows[0].cells[0], found.rows[1].cells[0]
    assert first.difference is None
    assert first.difference_interval is None
    assert second.difference is not None
    assert second.difference == pytest.approx(second.value - first.value)
    assert second.difference_interval is not None
    assert 0 < second.difference_interval[0] < second.difference < second.difference_interval[1]
    # The report's own interval, drawn from the same groups by the same seed.
    assert first.interval == pytest.approx(base.report.figures["image_to_image_map"].interval)


def test_the_average_is_drawn_as_a_whole(encoder: Encoder) -> None:
    one = evaluated(encoder, 1, 1.0)
    found = compare({"one": [one]})
    names = ["image_to_image_map", "knn_accuracy", "zero_shot_accuracy", "text_to_image_r5"]
    groups = sorted({str(group) for kind in Kind for group in one.queries.asked[kind].groups})
    draws = np.random.default_rng(0).multinomial(len(groups), [1 / len(groups)] * len(groups), 1_000)
    averages = np.zeros(1_000)
    for name in names:
        each = one.queries.values[name]
        column = [groups.index(str(group)) for group in one.queries.asked[each.kind].groups[each.rows]]
        averages += (draws[:, column] * each.values).sum(axis=1) / draws[:, column].sum(axis=1) / len(names)
    cells = dict(zip([column.name for column in found.columns], found.rows[0].cells, strict=True))
    assert cells["average"].interval == pytest.approx(tuple(np.percentile(averages, [2.5, 97.5])))


def test_a_model_differs_from_itself_by_nothing_with_certainty(encoder: Encoder) -> None:
    one = evaluated(encoder, 1, 1.0)
    for cell in compare({"a": [one], "b": [one]}).rows[1].cells:
        assert cell.difference == 0
        assert cell.difference_interval in {(0.0, 0.0), None}


def test_values_are_averaged_over_seeds_query_by_query_and_the_spread_is_told(encoder: Encoder) -> None:
    seeds = [evaluated(encoder, seed, 1.0) for seed in (1, 2, 3)]
    base = evaluated(encoder, 9, 1.4)
    found = compare({"base": [base], "three": seeds})
    cell = found.rows[1].cells[0]
    each = [values(evaluation)["image_to_image_map"] for evaluation in seeds]
    assert cell.seeds == pytest.approx(each)
    assert cell.value == pytest.approx(np.mean(each))
    assert cell.spread == pytest.approx(np.std(each, ddof=1))
    assert found.rows[0].cells[0].spread is None
    # The very interval of the values averaged by hand.
    queries = seeds[0].queries.values["image_to_image_map"]
    mean = np.mean([one.queries.values["image_to_image_map"].values for one in seeds], axis=0)
    averaged = replace(
        seeds[0],
        queries=replace(
            seeds[0].queries,
            values={**seeds[0].queries.values, "image_to_image_map": replace(queries, values=mean)},
        ),
    )
    by_hand = compare({"base": [base], "averaged": [averaged]}).rows[1].cells[0]
    assert cell.interval == pytest.approx(by_hand.interval)
    assert cell.difference_interval == pytest.approx(by_hand.difference_interval)
    assert np.mean([one.report.curve for one in seeds], axis=0) == pytest.approx(found.rows[1].curve)


def test_figures_that_one_model_lacks_are_left_out(encoder: Encoder) -> None:
    more, fewer = evaluated(encoder, 1, 1.0, index="Flat"), evaluated(encoder, 1, 1.0)
    names = {column.name for column in compare({"more": [more], "fewer": [fewer]}).columns}
    assert "image_to_image_map" in names
    assert "index_recall_pictures" not in names


def test_models_are_not_compared_on_other_queries_or_by_other_protocols(encoder: Encoder) -> None:
    one, other = evaluated(encoder, 1, 1.0, "one"), evaluated(encoder, 1, 1.0, "other", with_self=False)
    with pytest.raises(BuildError, match="one and other were evaluated by different protocols"):
        compare({"one": [one], "other": [other]})
    elsewhere = evaluate_encoded(encoder, known(unit(0, 3), ["a", "a", "b"]), EvaluateOptions(model="elsewhere"))
    with pytest.raises(BuildError, match="one and elsewhere were not evaluated on the same pictures"):
        compare({"one": [one], "elsewhere": [elsewhere]})
    for nothing in ({}, {"one": [one], "none": []}):
        with pytest.raises(BuildError, match="at least one evaluation of each model"):
            compare(nothing)


def test_what_was_saved_compares_as_what_was_not(encoder: Encoder, tmp_path: Path) -> None:
    evaluations = {"a": evaluated(encoder, 1, 1.4), "b": evaluated(encoder, 2, 0.7)}
    loaded = {}
    for name, evaluation in evaluations.items():
        (tmp_path / name).mkdir()
        evaluation.save(tmp_path / name)
        loaded[name] = [Evaluation.load(tmp_path / name)]
    assert compare(loaded) == compare({name: [each] for name, each in evaluations.items()})


# The command line


def run(*arguments: object) -> Result:
    app = typer.Typer(rich_markup_mode=None)
    app.command()(command)
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def test_the_command_prints_the_table_and_writes_three_files(source: Path, tmp_path: Path, model: EncoderName) -> None:
    out = tmp_path / "new" / "out"
    result = run("--data", source, "--labels", "parent", "--model", model.model, "--out", out)
    assert result.exit_code == 0, result.output
    assert sorted(path.name for path in out.iterdir()) == ["queries.npz", "report.html", "report.json"]
    report = Report.model_validate_json((out / "report.json").read_text())
    assert report.table() in result.stdout
    assert "k-NN classification" in result.stdout
    assert "Text to image: No picture has a caption." in result.stdout
    assert (report.pictures, report.skipped) == (24, 1)  # table.csv is no picture


def test_options_reach_the_evaluation(source: Path, tmp_path: Path, model: EncoderName) -> None:
    (tmp_path / "templates.txt").write_text("one {}\ntwo {}\n")
    (tmp_path / "descriptions.json").write_text('{"red": ["warmth"], "blue": [], "green": ["leaves", "grass"]}')
    result = run(
        *("--data", source / "table.csv", "--model", model.model, "--instance-column", "size", "--without-self"),
        *("--templates", tmp_path / "templates.txt", "--descriptions", tmp_path / "descriptions.json"),
        *("--index", "Flat", "--captions", "first", "--examples", 0, "--out", tmp_path / "out", "--progress", "json"),
    )
    assert result.exit_code == 0, result.output
    report = Report.model_validate_json((tmp_path / "out" / "report.json").read_text())
    assert json.loads(result.stdout.splitlines()[-1]) == report.model_dump(mode="json")
    words = {section.title: section.protocol for section in report.sections}
    assert "column 'size', 8 different" in words["Image to image"]
    assert "with the query left out" in words["Image to image"]
    assert "2 prompts, such as 'one {}'" in words["Zero-shot classification"]
    assert "3 descriptions of 3 classes" in words["Zero-shot classification by description"]
    assert "FAISS index Flat" in words["Approximate index"]
    assert "the first of each picture" in words["Text to image"]
    assert report.examples == ()


def test_conditions_choose_queries_and_gallery(source: Path, tmp_path: Path, model: EncoderName) -> None:
    result = run(
        *("--data", source / "table.csv", "--model", model.model, "--out", tmp_path / "out"),
        *("--where", "size=3", "--gallery-where", "label=red"),
    )
    assert result.exit_code == 0, result.output
    report = Report.model_validate_json((tmp_path / "out" / "report.json").read_text())
    assert report.pictures == 3
    assert report.data == "table.csv size=3"
    assert report.absent["k-NN classification"].startswith("All pictures that vote have the same label")


def test_models_are_put_side_by_side(source: Path, tmp_path: Path, model: EncoderName) -> None:
    other = save_model(tmp_path / "other", new_model(1))
    out = tmp_path / "out"
    result = run(
        "--data",
        source / "table.csv",
        "--out",
        out,
        "--compare",
        f"base={model.model}",
        other,
        "--label-column",
        "label",
    )
    assert result.exit_code == 0, result.output
    assert re.search(r"^less base +I2I mAP +k-NN +Zero-shot +T2I R@5 +AVG$", result.stdout, re.MULTILINE)
    assert re.search(r"^other +[+-]\d+\.\d \[[+-]\d+\.\d, [+-]\d+\.\d\]", result.stdout, re.MULTILINE)
    files = sorted(path.relative_to(out).as_posix() for path in out.rglob("*.*"))
    each = ("queries.npz", "report.html", "report.json")
    assert files == [
        *(f"base/{name}" for name in each),
        *(f"comparison.{ending}" for ending in ("html", "json", "md")),
        *(f"other/{name}" for name in each),
    ]
    assert (out / "comparison.md").read_text().startswith("|  | I2I mAP | k-NN |")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--compare", "demo"], "two at least"),
        (["--compare", "a=demo", "b=demo", "--model", "demo"], "none with --model"),
        (["--compare", "demo", "demo"], "Two models are called 'demo'"),
        (["demo"], "Several models are for --compare"),
        (["--out", "."], "exists already; a report is never overwritten"),
        (["--out", "/dev/null/x"], "cannot be made"),
        (["--captions", "some"], "'some' is not one of"),
    ],
)
def test_wrong_usage_is_explained_and_ends_with_2(source: Path, arguments: list[str], message: str) -> None:
    result = run("--data", source, *arguments)
    assert result.exit_code == 2
    assert message in re.sub(r"[\s│]+", " ", result.output)


def test_reports_need_matplotlib_and_figures_do_not(
    source: Path, tmp_path: Path, model: EncoderName, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    arguments = ("--data", source, "--labels", "parent", "--model", model.model)
    assert run(*arguments).exit_code == 0
    result = run(*arguments, "--out", tmp_path / "out")
    assert result.exit_code == 2
    assert "pip install 'kindred[train]'" in result.output
    assert not (tmp_path / "out").exists()


def test_models_with_the_same_image_half_encode_the_pictures_once(
    source: Path, tmp_path: Path, model: EncoderName
) -> None:
    other = new_model(0)
    torch.nn.init.normal_(other.text_projection)
    swapped = save_model(tmp_path / "swapped", other)
    result = run(
        *("--data", source / "table.csv", "--progress", "json", "--instance-column", "size"),
        *("--compare", f"a={model.model}", f"b={swapped}"),
        f"c={save_model(tmp_path / 'other', new_model(1))}",
    )
    assert result.exit_code == 0, result.output
    *progress, last = [json.loads(line) for line in result.stdout.splitlines()]
    assert [line["done"] for line in progress] == [24, 24]
    names = [column["name"] for column in last["columns"]]
    first, second, third = (dict(zip(names, row["cells"], strict=True)) for row in last["rows"])
    assert first["image_to_image_map"]["value"] == second["image_to_image_map"]["value"]
    assert second["image_to_image_map"]["value"] != third["image_to_image_map"]["value"]
    assert first["modality_gap"]["value"] != second["modality_gap"]["value"]


def test_a_failure_leaves_no_folder_behind(source: Path, tmp_path: Path, model: EncoderName) -> None:
    result = run("--data", source, "--model", model.model, "--where", "klass=1", "--out", tmp_path / "out")
    assert isinstance(result.exception, BuildError)
    assert not (tmp_path / "out").exists()


def test_a_gpr1200_folder_is_read_by_its_names(tmp_path: Path, model: EncoderName) -> None:
    (tmp_path / "images").mkdir()
    random = np.random.default_rng(0)
    for row in range(6):
        pixels = random.integers(0, 255, (20, 20, 3), np.uint8)
        Image.fromarray(pixels).save(tmp_path / "images" / f"{row // 2}_{row}.png")
    result = run("--data", tmp_path / "images", "--labels", "gpr1200", "--model", model.model)
    assert result.exit_code == 0, result.output
    assert re.search(r"^  mAP +\d+\.\d +\[.*\] +6 queries$", result.stdout, re.MULTILINE)
    assert "Zero-shot classification: The labels (column 'label') are numbers" in result.stdout
