"""Metrics: against scikit-learn, trec_eval, the formulas written out, and cases worked by hand."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import pytrec_eval
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from numpy.typing import NDArray
from sklearn.metrics import average_precision_score, precision_recall_curve, top_k_accuracy_score
from sklearn.metrics import confusion_matrix as sklearn_confusion
from sklearn.neighbors import KNeighborsClassifier

from indexer.encoder import Embeddings, Encoder
from indexer.errors import BuildError
from indexer.evaluate import metrics
from indexer.evaluate.bootstrap import interval, resampled_means
from indexer.evaluate.classification import nearest_class, vote_all
from indexer.evaluate.index_recall import index_recall
from indexer.evaluate.metrics import (
    average_precision,
    blocks,
    confusion_matrix,
    first_right,
    hit_at,
    interpolated_precision,
    modality_gap,
    ranking,
)
from indexer.evaluate.prompts import (
    TEMPLATES,
    class_vectors,
    described,
    description_vectors,
    read_descriptions,
    read_templates,
)
from indexer.evaluate.retrieval import first_right_ranks, image_to_image, nearest
from indexer.index_building import build_index
from indexer.vote import vote

QUERIES, CANDIDATES = 40, 60


def unit(random: np.random.Generator, rows: int, dim: int = 8) -> Embeddings:
    vectors = random.standard_normal((rows, dim)).astype(np.float32)
    return np.asarray(vectors / np.linalg.norm(vectors, axis=1, keepdims=True), np.float32)


def tied_scores(random: np.random.Generator) -> NDArray[np.float32]:
    """Draw scores of seven different values, so that nearly all are tied."""
    return (random.integers(-3, 4, (QUERIES, CANDIDATES)) / 4).astype(np.float32)


def relevance(random: np.random.Generator) -> NDArray[np.bool_]:
    right = random.random((QUERIES, CANDIDATES)) < random.uniform(0.02, 0.6, (QUERIES, 1))
    right[:, 17] |= ~right.any(axis=1)
    return right


def in_order(scores: NDArray[np.float32], right: NDArray[np.bool_]) -> NDArray[np.bool_]:
    return np.take_along_axis(right, ranking(scores), axis=1)


def trec(scores: NDArray[np.float32], right: NDArray[np.bool_], measures: set[str]) -> list[dict[str, float]]:
    """Ask trec_eval, which puts equal scores in descending order of their names: the first row gets the last name."""
    names = [f"d{9_999 - row}" for row in range(scores.shape[1])]
    truth = {str(q): {names[row]: int(each) for row, each in enumerate(line)} for q, line in enumerate(right)}
    run = {str(q): {names[row]: float(each) for row, each in enumerate(line)} for q, line in enumerate(scores)}
    found = pytrec_eval.RelevanceEvaluator(truth, measures).evaluate(run)
    return [found[str(q)] for q in range(len(scores))]


@given(
    arrays.arrays(
        np.float32,
        st.tuples(st.integers(1, 4), st.integers(1, 30)),
        elements=st.sampled_from([-np.inf, -2.5, -1.0, -1e-38, -0.0, 0.0, 1e-38, 0.5, 1.0, np.inf]),
    ),
    st.integers(1, 31),
)
def test_a_ranking_is_the_stable_descending_order(scores: NDArray[np.float32], k: int) -> None:
    expected = np.argsort(-scores, axis=1, kind="stable")
    assert ranking(scores).tolist() == expected.tolist()
    assert ranking(scores, k).tolist() == expected[:, :k].tolist()


@given(arrays.arrays(np.float32, (3, 25), elements=st.floats(width=32, allow_nan=False)))
def test_any_floats_are_ranked_as_numpy_sorts_them(scores: NDArray[np.float32]) -> None:
    assert ranking(scores).tolist() == np.argsort(-scores, axis=1, kind="stable").tolist()


def test_average_precision_worked_by_hand() -> None:
    right = np.array([[1, 0, 1, 1, 0], [0, 0, 0, 0, 1], [1, 1, 1, 1, 1]], np.bool_)
    assert average_precision(right) == pytest.approx([(1 + 2 / 3 + 3 / 4) / 3, 1 / 5, 1])


def test_average_precision_is_scikit_learns_where_nothing_is_tied() -> None:
    random = np.random.default_rng(1)
    scores = random.permuted(np.tile(np.linspace(-1, 1, CANDIDATES, dtype=np.float32), (QUERIES, 1)), axis=1)
    right = relevance(random)
    expected = [average_precision_score(*pair) for pair in zip(right, scores, strict=True)]
    assert average_precision(in_order(scores, right)) == pytest.approx(expected)


@pytest.mark.parametrize("seed", range(3))
def test_with_ties_every_measure_is_trec_evals(seed: int) -> None:
    random = np.random.default_rng(seed)
    scores, right = tied_scores(random), relevance(random)
    found = in_order(scores, right)
    levels = {f"iprec_at_recall_{level / 10:.2f}" for level in range(11)}
    expected = trec(scores, right, {"map", "recip_rank", "success", "iprec_at_recall"})
    assert average_precision(found) == pytest.approx([each["map"] for each in expected])
    assert 1 / first_right(scores, right) == pytest.approx([each["recip_rank"] for each in expected])
    for k in (1, 5, 10):
        assert hit_at(found, k).tolist() == [each[f"success_{k}"] for each in expected]
    curves = np.array([[each[level] for level in sorted(levels)] for each in expected])
    hits, steps = right.sum(axis=1)[:, None], np.arange(11)
    # trec_eval counts the hits that a recall needs in floats, and now and then comes to one too few: 0.7 of 3 to 2.
    same = (steps / 10 * hits + 0.9).astype(int) == -(-steps * hits // 10)
    assert same.mean() > 0.9
    assert interpolated_precision(found, steps=10)[same] == pytest.approx(curves[same])


def test_the_order_of_ties_matters_to_that_comparison() -> None:
    random = np.random.default_rng(0)
    scores, right = tied_scores(random), relevance(random)
    backwards = average_precision(in_order(scores[:, ::-1], right[:, ::-1]))
    assert np.abs(backwards - average_precision(in_order(scores, right))).max() > 0.05


@pytest.mark.parametrize("hits", [1, 7, 10, 30, 100])
def test_interpolated_precision_is_the_best_of_scikit_learns_curve_from_there_on(hits: int) -> None:
    random = np.random.default_rng(hits)
    right = np.zeros(200, np.bool_)
    right[random.choice(200, hits, replace=False)] = True
    precision, recall, _ = precision_recall_curve(right, -np.arange(200))
    # Recall is a number of hits by their total; in whole numbers nothing is rounded.
    found = np.round(recall * hits).astype(int)
    # Its last point, precision 1 at recall 0, is a convention and not a threshold.
    expected = [precision[:-1][found[:-1] * 100 >= level * hits].max() for level in range(101)]
    # sklearn's thresholds stop at full recall; so does the curve.
    assert interpolated_precision(right[None, :])[0] == pytest.approx(expected)


def test_first_right_is_the_place_in_the_ranking() -> None:
    random = np.random.default_rng(3)
    scores, right = tied_scores(random), relevance(random)
    expected = [1 + line.tolist().index(True) for line in in_order(scores, right)]
    assert first_right(scores, right).tolist() == expected


@pytest.mark.parametrize("k", [1, 2, 5])
def test_the_part_found_among_the_first_k_is_scikit_learns_top_k_accuracy(k: int) -> None:
    random = np.random.default_rng(k)
    scores = random.standard_normal((200, 12)).astype(np.float32)
    truth = random.integers(0, 12, 200)
    ranks = first_right(scores, np.eye(12, dtype=np.bool_)[truth])
    assert (ranks <= k).mean() == pytest.approx(top_k_accuracy_score(truth, scores, k=k, labels=range(12)))


def test_the_nearest_class_is_scikit_learns_and_the_first_of_equals() -> None:
    random = np.random.default_rng(5)
    images, classes = unit(random, 300), random.standard_normal((6, 8)).astype(np.float32)
    truth = random.integers(0, 6, 300)
    expected = top_k_accuracy_score(truth, images @ classes.T, k=1, labels=range(6))
    assert (nearest_class(images, classes) == truth).mean() == pytest.approx(expected)
    assert nearest_class(images, np.zeros((3, 8), np.float32)).tolist() == [0] * 300


def test_the_confusion_matrix_is_scikit_learns() -> None:
    random = np.random.default_rng(0)
    truth, predicted = random.integers(0, 5, 99), random.integers(0, 4, 99)
    assert confusion_matrix(truth, predicted, 5).tolist() == sklearn_confusion(truth, predicted).tolist()


def test_the_modality_gap_of_known_means() -> None:
    images = np.array([[1, 0], [0, 1]], np.float32)
    texts = np.array([[-1, 0], [-1, 0], [0, -1]], np.float32)
    assert modality_gap(images, texts) == pytest.approx((1 / 2 + 2 / 3) ** 2 + (1 / 2 + 1 / 3) ** 2)
    assert modality_gap(images, images[::-1]) == 0


@given(st.integers(0, 500), st.integers(0, 3 * 2**20))
@settings(max_examples=50)
def test_blocks_cover_every_query_once_within_the_size(queries: int, candidates: int) -> None:
    cut = list(blocks(queries, candidates))
    assert [row for block in cut for row in range(queries)[block]] == list(range(queries))
    assert all(block.stop - block.start == 1 or (block.stop - block.start) * candidates <= 2**20 for block in cut)


# Retrieval


def literal_image_to_image(
    embeddings: Embeddings, labels: list[int], *, with_self: bool
) -> tuple[dict[int, float], dict[int, float]]:
    """Return average precision and R@1 by query, as the protocol's words say, one query at a time."""
    precisions, firsts = {}, {}
    for query, label in enumerate(labels):
        if label < 0:
            continue
        scores = embeddings @ embeddings[query]
        order = sorted(range(len(labels)), key=lambda row: (-scores[row], row))
        others = [row for row in order if row != query]
        if any(labels[row] == label for row in others):
            firsts[query] = float(labels[others[0]] == label)
        hits, total = 0, 0.0
        for rank, row in enumerate(order if with_self else others, start=1):
            if labels[row] == label:
                hits += 1
                total += hits / rank
        if hits:
            precisions[query] = total / hits
    return precisions, firsts


@pytest.mark.parametrize("with_self", [True, False])
def test_image_to_image_is_its_protocol_written_out_whatever_the_blocks(
    with_self: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    random = np.random.default_rng(11)
    embeddings = unit(random, 90, dim=3)
    labels = random.integers(-1, 25, 90)
    labels[:2] = 25, 26  # surely alone
    monkeypatch.setattr(metrics, "_BLOCK", 90 * 7)
    found = image_to_image(embeddings, labels, with_self=with_self)
    precisions, firsts = literal_image_to_image(embeddings, labels.tolist(), with_self=with_self)
    assert dict(zip(found.queries.tolist(), found.average_precision, strict=True)) == pytest.approx(precisions)
    assert dict(zip(found.accompanied.tolist(), found.r1, strict=True)) == pytest.approx(firsts)
    assert found.r1.tolist() != found.r5.tolist()


def test_the_query_that_stays_in_the_list_is_a_hit() -> None:
    # On a half circle: a, b, a, b. From either end, the other of the same label is third.
    angles = np.array([0, 1, 2, 3]) * 0.3
    embeddings = np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)
    labels = np.array([0, 1, 0, 1])
    with_self = image_to_image(embeddings, labels, with_self=True).average_precision
    without = image_to_image(embeddings, labels, with_self=False).average_precision
    assert with_self[[0, 3]] == pytest.approx([(1 + 2 / 3) / 2] * 2)
    assert without[[0, 3]] == pytest.approx([1 / 2] * 2)


def test_pictures_without_label_answer_but_do_not_ask() -> None:
    embeddings = np.array([[1, 0], [0.999, 0.0447], [0, 1]], np.float32)
    found = image_to_image(embeddings, np.array([0, -1, 0]), with_self=False)
    assert found.queries.tolist() == [0, 2]
    assert found.average_precision.tolist() == [0.5, 0.5]


def test_exact_copies_keep_the_order_of_the_rows() -> None:
    embeddings = np.tile(np.array([[0.6, 0.8]], np.float32), (4, 1))
    found = image_to_image(embeddings, np.array([0, 0, 1, 1]), with_self=True)
    assert found.average_precision == pytest.approx([1, 1, (1 / 3 + 2 / 4) / 2, (1 / 3 + 2 / 4) / 2])


def test_without_labels_there_are_no_queries() -> None:
    found = image_to_image(unit(np.random.default_rng(0), 5), np.full(5, -1), with_self=True)
    assert len(found.queries) == len(found.accompanied) == len(found.average_precision) == 0


def test_the_nearest_leave_out_the_query_itself_and_nothing_else() -> None:
    random = np.random.default_rng(2)
    gallery, queries = unit(random, 50), unit(random, 5)
    queries[3] = gallery[30]
    own = np.array([-1, -1, -1, 30, -1])
    scores = queries @ gallery.T
    scores[3, 30] = -9
    expected = np.argsort(-scores, axis=1, kind="stable")[:, :10]
    found = nearest(queries, gallery, own, 10)
    assert found.rows.tolist() == expected.tolist()
    assert found.scores == pytest.approx(np.take_along_axis(scores, expected, axis=1), abs=1e-6)


def test_ranks_of_several_right_answers_are_those_of_the_best() -> None:
    candidates = np.eye(4, dtype=np.float32)
    queries = np.array([[0.1, 0.9, 0.3, 0.2], [0.1, 0.9, 0.3, 0.2]], np.float32)
    right = [np.array([0, 3]), np.array([0, 1, 2])]
    assert first_right_ranks(queries, candidates, right).tolist() == [3, 1]


# Classification


@pytest.mark.parametrize("temperature", [1e-4, 0.02, 0.1, 5.0])
def test_many_votes_are_many_single_votes_ties_and_all(temperature: float) -> None:
    random = np.random.default_rng(0)
    classes = ["ant", "bee", "cat", "dog"]
    # Few different scores, in no order: totals are often equal but for rounding.
    scores = (random.integers(1, 4, (400, 6)) / 7).astype(np.float32)
    labels = random.integers(0, 4, (400, 6))
    expected = [
        next(iter(vote([classes[label] for label in near], score, temperature)))
        for near, score in zip(labels, scores, strict=True)
    ]
    assert [classes[winner] for winner in vote_all(labels, scores, classes, temperature)] == expected


def test_equal_totals_go_to_the_first_name_in_whatever_order_the_neighbours_come() -> None:
    random = np.random.default_rng(0)
    forwards = random.random((50, 10)).astype(np.float32)
    backwards = forwards[:, ::-1]
    weights = np.exp(forwards.astype(np.float64) / 0.07)
    assert (weights.cumsum(axis=1)[:, -1] != weights[:, ::-1].cumsum(axis=1)[:, -1]).any()  # added up naively
    labels = np.array([[1] * 10 + [0] * 10] * 50)
    for scores in (np.hstack([forwards, backwards]), np.hstack([backwards, forwards])):
        assert vote_all(labels, scores, ["a", "b"], 0.07).tolist() == [0] * 50


@pytest.mark.parametrize(("k", "temperature"), [(1, 0.1), (5, 0.1), (21, 0.1), (21, 0.02), (50, 1.0)])
def test_the_vote_is_scikit_learns_with_the_same_weights(k: int, temperature: float) -> None:
    random = np.random.default_rng(k)
    gallery, queries = unit(random, 300, dim=4), unit(random, 200, dim=4)
    labels = random.integers(0, 7, 300)
    classifier = KNeighborsClassifier(
        k, weights=lambda distance: np.exp((1 - distance) / temperature), metric="cosine", algorithm="brute"
    )
    expected = classifier.fit(gallery, labels).predict(queries)
    found = nearest(queries, gallery, np.full(200, -1), k)
    classes = [str(number) for number in range(7)]
    assert vote_all(labels[found.rows], found.scores, classes, temperature).tolist() == expected.tolist()


def test_a_class_vector_is_the_normalised_mean_of_its_prompts(encoder: Encoder) -> None:
    prompts = ["a photo of a stop sign.", "a stop sign in a video game."]
    mean = encoder.encode_texts(prompts).mean(axis=0)
    found = class_vectors(encoder, ["stop_sign", "cat"], ("a photo of a {}.", "a {} in a video game."))
    assert found[0] == pytest.approx(mean / np.linalg.norm(mean), abs=1e-6)
    assert np.linalg.norm(found, axis=1) == pytest.approx([1, 1], abs=1e-6)


def test_the_default_prompts_are_openais_seven() -> None:
    assert len(TEMPLATES) == 7
    assert all(template.count("{}") == 1 for template in TEMPLATES)


@pytest.mark.parametrize(
    ("description", "expected"),
    [
        ("whiskers", "cat, which has whiskers"),
        ("a long tail", "cat, which is a long tail"),
        ("An animal", "cat, which is An animal"),
        ("antlers", "cat, which has antlers"),
        ("used for hunting mice", "cat, which is used for hunting mice"),
        ("often asleep", "cat, which often asleep"),
        ("can purr", "cat, which can purr"),
    ],
)
def test_descriptions_are_joined_by_their_first_word(description: str, expected: str) -> None:
    assert described("cat", description) == expected


def test_a_description_score_is_the_mean_similarity_in_any_order(encoder: Encoder) -> None:
    image = unit(np.random.default_rng(0), 1, dim=16)
    texts = ["red fox, which has fur", "red fox, which is a hunter"]
    expected = [
        float(np.mean(encoder.encode_texts(texts) @ image[0])),
        float((encoder.encode_texts(["cat"]) @ image[0])[0]),
    ]
    for order in (["fur", "a hunter"], ["a hunter", "fur"]):
        vectors = description_vectors(encoder, ["red_fox", "cat"], {"red_fox": order, "cat": []})
        assert (image @ vectors.T)[0] == pytest.approx(expected, abs=1e-6)


def test_a_class_without_entry_is_named(encoder: Encoder) -> None:
    with pytest.raises(BuildError, match="1 of 2 classes have no descriptions, for example 'dog'"):
        description_vectors(encoder, ["cat", "dog"], {"cat": ["fur"]})


@pytest.mark.parametrize(
    ("read", "content", "message"),
    [
        (read_templates, b"", "hold no line"),
        (read_templates, b"a photo of a {}.\n\na photo\n", "'a photo' .* does not say where the name goes"),
        (read_templates, b"\xff{}", "is not UTF-8"),
        (read_descriptions, b"{", "Invalid JSON"),
        (read_descriptions, b'{"cat": "fur"}', "at cat: "),
        (read_descriptions, b'{"cat": ["fur", 3]}', "at cat/1: "),
        (read_descriptions, b"[]", "at the whole: "),
    ],
)
def test_what_is_wrong_with_a_file_of_texts_is_said(
    tmp_path: Path, read: Callable[[Path], object], content: bytes, message: str
) -> None:
    (tmp_path / "file").write_bytes(content)
    with pytest.raises(BuildError, match=message):
        read(tmp_path / "file")
    with pytest.raises(BuildError, match="cannot be read: No such file"):
        read(tmp_path / "none")


def test_templates_are_the_lines_that_are_not_blank(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("\ufeffa photo of a {}.\n\n  art of the {}.  \n", encoding="utf-8")
    assert read_templates(tmp_path / "file") == ("a photo of a {}.", "art of the {}.")


# Bootstrap


def test_a_bootstrap_over_single_queries_is_the_normal_interval_of_their_mean() -> None:
    values = np.random.default_rng(0).beta(2, 1, 1_000)
    low, high = interval(resampled_means(values[None, :], np.ones((1, 1_000)), 4_000, seed=1)[:, 0])
    error = 1.96 * values.std(ddof=1) / 1_000**0.5
    assert (low, high) == pytest.approx((values.mean() - error, values.mean() + error), abs=error / 20)


def test_ten_copies_of_every_query_in_its_group_promise_nothing_more() -> None:
    values = np.random.default_rng(0).random(60)
    single = resampled_means(values[None, :], np.ones((1, 60)), 200, seed=4)
    copies = resampled_means(10 * values[None, :], np.full((1, 60), 10.0), 200, seed=4)
    assert copies == pytest.approx(single)


def test_the_interval_covers_the_truth_as_often_as_it_says() -> None:
    # 400 worlds of 40 groups of 5 queries that all agree; single queries would cover in well under 80 %.
    random = np.random.default_rng(7)
    groups = random.random((400, 40))
    covered = 0
    for world in groups:
        low, high = interval(resampled_means(5 * world[None, :], np.full((1, 40), 5.0), 300, seed=0)[:, 0])
        covered += low <= 0.5 <= high
    assert 0.90 <= covered / 400 <= 0.98


def test_all_figures_see_the_same_draws() -> None:
    values = np.random.default_rng(0).random(30)
    means = resampled_means(np.stack([values, values + 0.25]), np.ones((2, 30)), 100, seed=0)
    assert means[:, 1] - means[:, 0] == pytest.approx(np.full(100, 0.25))


def test_the_seed_decides_and_draws_without_a_query_do_not_count() -> None:
    sums, counts = np.array([[0.0, 1.0, 0.0]]), np.array([[1.0, 1.0, 0.0]])
    first = resampled_means(sums, counts, 500, seed=0)
    assert np.array_equal(first, resampled_means(sums, counts, 500, seed=0), equal_nan=True)
    assert not np.array_equal(first, resampled_means(sums, counts, 500, seed=1), equal_nan=True)
    # Three draws of the third group, one time in 27, hold no query.
    assert np.isnan(first).mean() == pytest.approx(1 / 27, abs=0.03)
    assert interval(first[:, 0]) == (0.0, 1.0)


# The index


def test_an_exact_index_finds_everything() -> None:
    embeddings = unit(np.random.default_rng(0), 300)
    index = build_index(embeddings, "Flat")
    found = index_recall(index, embeddings, embeddings)
    assert found.recall.tolist() == [1.0] * 300
    assert found.milliseconds > 0
    assert found.exact_milliseconds > 0


@pytest.mark.parametrize("factory", ["IVF16,Flat", "IVF100,Flat"])  # of the second, a cell has fewer than ten
def test_the_recall_of_an_approximate_index_is_the_part_of_the_exact_ten_that_it_finds(factory: str) -> None:
    random = np.random.default_rng(0)
    embeddings, queries = unit(random, 800), unit(random, 100)
    index = build_index(embeddings, factory)
    exact_rows = np.argsort(-(queries @ embeddings.T), axis=1)[:, :10]
    expected = [
        len({*index.search(query[None, :], 10)[0].tolist()} & {*rows.tolist()}) / 10
        for query, rows in zip(queries, exact_rows, strict=True)
    ]
    found = index_recall(index, embeddings, queries)
    assert found.recall == pytest.approx(expected)
    assert 0.1 < found.recall.mean() < 0.95


def test_any_of_equal_answers_counts() -> None:
    embeddings = np.concatenate(
        [np.tile(unit(np.random.default_rng(0), 1), (40, 1)), unit(np.random.default_rng(1), 9)]
    )
    index = build_index(embeddings, "HNSW8")
    assert index_recall(index, embeddings, embeddings[:1]).recall.tolist() == [1.0]


def test_at_most_a_thousand_queries_are_asked_spread_evenly() -> None:
    embeddings = unit(np.random.default_rng(0), 2_500, dim=2)
    index = build_index(embeddings[:20], "Flat")
    asked = index_recall(index, embeddings[:20], embeddings).queries
    assert asked.tolist() == list(range(0, 2_500, 3))
