import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from aimfair.data.labels import Attribute, Labels
from aimfair.data.settings import DataSettings
from aimfair.data.split import biased, stratified


def labels_of(sizes: np.ndarray) -> Labels:
    """Images of groups [Y, A] of these sizes, shuffled."""
    y, a = np.divmod(np.repeat(np.arange(sizes.size), sizes.ravel()), sizes.shape[1])
    order = np.random.default_rng(0).permutation(len(y))
    names = [tuple(map(str, range(size))) for size in sizes.shape]
    return Labels(Attribute(y[order], names[0]), Attribute(a[order], names[1]), {})


@st.composite
def groups(draw: st.DrawFn) -> np.ndarray:
    shape = draw(st.tuples(st.integers(2, 4), st.integers(2, 4)))
    count = shape[0] * shape[1]
    return np.array(draw(st.lists(st.integers(0, 200), min_size=count, max_size=count))).reshape(shape)


SHARES = st.floats(0, 0.5, exclude_min=True, exclude_max=True)


def counts(labels: Labels, images: np.ndarray) -> np.ndarray:
    found = np.zeros((len(labels.target.names), len(labels.protected.names)), dtype=np.int64)
    np.add.at(found, (labels.target.values[images], labels.protected.values[images]), 1)
    return found


@given(groups(), SHARES, SHARES, st.integers(0, 5))
def test_parts_are_disjoint_and_all_and_have_their_shares(
    sizes: np.ndarray, validation_share: float, test_share: float, seed: int
) -> None:
    labels = labels_of(sizes)
    settings = DataSettings(validation_share=validation_share, test_share=test_share, seed=seed)
    _, validation, test = parts = stratified(labels, settings)
    assert sorted(np.concatenate(parts)) == list(range(int(sizes.sum())))
    assert all((np.diff(part) > 0).all() for part in parts)
    for part, share in ((validation, validation_share), (test, test_share)):
        found = counts(labels, part)
        assert (np.abs(found - share * sizes) < 1).all()
        assert (found <= share * sizes + 1e-6).all()
    again = stratified(labels, settings)
    assert all(np.array_equal(one, other) for one, other in zip(parts, again, strict=True))


def test_a_share_of_a_whole_number_is_whole() -> None:
    labels = labels_of(np.full((2, 2), 100))
    settings = DataSettings(validation_share=0.29, test_share=0.07)  # 0.29 * 100 is 28.999999999999996
    assert [len(part) for part in stratified(labels, settings)] == [256, 116, 28]


def test_another_seed_cuts_and_draws_otherwise() -> None:
    labels = labels_of(np.full((2, 2), 50))
    settings = [DataSettings(seed=seed) for seed in (0, 1)]
    parts = [stratified(labels, one) for one in settings]
    assert not any(np.array_equal(one, other) for one, other in zip(*parts, strict=True))
    among = np.arange(200)
    drawn = [biased(labels, among, one, what="set", minority_ratio=0.5, total=60) for one in settings]
    assert not np.array_equal(*drawn)
    assert [counts(labels, one).tolist() for one in drawn] == [[[10, 20], [20, 10]]] * 2


def test_a_biased_set_is_of_the_images_it_is_taken_among() -> None:
    labels = labels_of(np.full((2, 3), 40))
    among = np.arange(100, 240)
    settings = DataSettings(majority=[2, 0])
    for draw in (False, True):
        chosen = biased(labels, among, settings, what="set", minority_ratio=0.25, draw=draw, total=30)
        assert np.isin(chosen, among).all()
        assert counts(labels, chosen).tolist() == [[3, 3, 10], [10, 2, 2]]


def test_an_intersection_moves_no_image() -> None:
    labels = labels_of(np.full((2, 2), 50))
    ages = Attribute(np.random.default_rng(1).integers(0, 3, 200), ("a", "b", "c"))
    plain = DataSettings.model_validate({"kind": "table", "root": ".", "target": "y", "protected": "a"})
    crossed = plain.model_copy(update={"intersect_with": ["age"]})
    known = {"y": labels.target, "a": labels.protected, "age": ages}
    for one, other in zip(
        stratified(Labels.of(plain, known), plain), stratified(Labels.of(crossed, known), crossed), strict=True
    ):
        np.testing.assert_array_equal(one, other)


@given(groups(), SHARES, SHARES, st.integers(1, 30))
def test_originals_stay_together(sizes: np.ndarray, validation_share: float, test_share: float, how_many: int) -> None:
    labels = labels_of(sizes)
    n = int(sizes.sum())
    clusters = [str(number) for number in np.random.default_rng(how_many).integers(0, how_many, n)]
    settings = DataSettings(validation_share=validation_share, test_share=test_share)
    parts = stratified(labels, settings, clusters)
    assert sorted(np.concatenate(parts)) == list(range(n))
    of_parts = [{clusters[number] for number in part} for part in parts]
    assert sum(map(len, of_parts)) == len(set(clusters))


def test_shares_are_met_as_nearly_as_originals_allow() -> None:
    labels = labels_of(np.full((2, 2), 400))
    # Of each group (y, a) 100 clusters of 4 images.
    group = labels.target.values * 2 + labels.protected.values
    clusters = [""] * 1600
    for number in range(4):
        for place, image in enumerate(np.flatnonzero(group == number)):
            clusters[image] = f"{number} {place // 4}"
    settings = DataSettings(validation_share=0.1, test_share=0.2)
    parts = stratified(labels, settings, clusters)
    assert [counts(labels, part).tolist() for part in parts] == [[[n, n], [n, n]] for n in (280, 40, 80)]
    alone = stratified(labels, settings, [str(number) for number in range(1600)])
    for one, other in zip(alone, stratified(labels, settings), strict=True):
        np.testing.assert_array_equal(one, other)
