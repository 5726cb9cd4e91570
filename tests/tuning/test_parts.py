"""Settings, search space, held-out images, sampler and choice, each alone."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from aimfair.base.errors import AimfairError
from aimfair.config import Config
from aimfair.data.images import ImageSet
from aimfair.generation.manifest import ImageRecord, file_name
from aimfair.tuning.choice import choose, complete, front, is_weak, regret
from aimfair.tuning.holdout import hold_out, validation_halves
from aimfair.tuning.sampler import propose
from aimfair.tuning.space import Space, with_values
from aimfair.tuning.trials import Audit, OfSeed, Point, Stopped, Trial
from tests.report.made_up import made_up_config

SPACE = Space(
    lr=(1e-4, 1e-1), epochs=(2, 20), density=(0.01, 1.0), rules=(("ratio", "difference"), ("top_k", "cosine"))
)


def table(worst: float) -> list[list[list[int]]]:
    """1,000 images of each group of two classes and two values, one group with this accuracy and the others right."""
    right = round(1000 * worst)
    return [[[right, 1000 - right], [0, 1000]], [[1000, 0], [0, 1000]]]


def trial(
    number: int, worst: float, accuracy: float, change: float = 0.1, real: Sequence[float] | None = None
) -> Trial:
    audit = None if real is None else Audit(validation=table(real[0]), test=table(real[1]))
    values = {"lr": 0.001 * number, "epochs": 2 + number, "density": 0.1} if number else {}
    of_seed = OfSeed(synthetic=table(worst), accuracy=accuracy, change=change, curve=[], audit=audit)
    return Trial(number=number, values=values, state="complete", seeds=[of_seed])


def pruned(number: int) -> Trial:
    return Trial(
        number=number, values={}, state="pruned", stopped=Stopped(curve=[Point(worst=1.0, accuracy=1.0)], epochs=4)
    )


# -- settings ----------------------------------------------------------------------------------------------------------


def config(**tune: Any) -> Config:
    return made_up_config(tune={"trials": 4, **tune})


@pytest.mark.parametrize(
    ("tune", "said"),
    [
        ({"trials": -1}, "greater than or equal to 0"),
        ({"methods": ["full", "nobody"]}, "found 'nobody', expected some of methods: linear_probe, full"),
        ({"methods": []}, "at least 1 item"),
        ({"fixed": {"nobody": ["lr"]}}, "found 'nobody', expected some of methods"),
        ({"fixed": {"full": ["momentum"]}}, "'lr', 'epochs', 'density' or 'rule'"),
        ({"seeds": 4}, "found 4, expected at most 3"),
        ({"lr_factors": [3, 0.3]}, r"found \[3, 0.3\], expected two numbers above 0, the lesser first"),
        ({"epochs_factors": [0, 1]}, "expected two numbers above 0"),
        ({"densities": [0.1, 2]}, "found 2, expected shares up to 1"),
        ({"rules": ["random"]}, "found 'random', expected some of top_k, intersection, ratio, budget"),
        ({"rules": ["ratio", "ratio"]}, "expected each once"),
        ({"criteria": ["cosine"]}, "'cosine' with rule 'ratio' is not possible for methods.aimfair: found 'element'"),
        ({"held_out": 1.0}, "less than 1"),
    ],
)
def test_settings_that_cannot_be_used_are_named(tune: dict[str, Any], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        config(**tune)


def test_one_prompt_per_group_cannot_train_and_judge() -> None:
    whole = config().model_dump(mode="json")
    for node, key in (("prompts", "per_group"), ("generate", "balanced_per_group")):
        with pytest.raises(ValidationError, match="found 1, expected at least 2: tuning judges by prompts"):
            Config.model_validate({**whole, node: {**whole[node], key: 1}})


def test_criteria_need_their_statistics() -> None:
    with pytest.raises(ValidationError, match=r"found 'sum', but 'fisher' of tune.criteria needs 'all'"):
        made_up_config(tune={"trials": 4, "criteria": ["fisher"]}, sensitivity={"statistics": "sum"})


def test_what_is_searched_depends_on_the_method() -> None:
    found = {name: config().space(name) for name in ("full", "random", "aimfair")}
    assert found["full"] == Space(lr=(3e-5, 0.03), epochs=(8, 30))
    assert (found["random"].density, found["random"].rules) == ((0.01, 1.0), ())
    assert len(found["aimfair"].rules) == 6
    fixed = config(fixed={"aimfair": ["lr", "density", "rule"]}).space("aimfair")
    assert fixed == Space(epochs=(8, 30))
    assert config(trials=0).tuned == []
    assert config(methods=["random"]).tuned == ["random"]


def test_a_density_takes_the_place_of_other_sizes() -> None:
    method = config().methods["aimfair"].model_copy(update={"rule": "intersection", "density": None, "bias_k": 5})
    method = with_values(method, {"density": 0.2, "rule": "top_k", "criterion": "relative_difference", "lr": 0.5})
    assert (method.density, method.bias_k, method.rule, method.lr) == (0.2, None, "top_k", 0.5)  # type: ignore[union-attr]


# -- held-out images ---------------------------------------------------------------------------------------------------


def record(image: int, group: tuple[int, int], prompt: str, *sets: str) -> ImageRecord:
    return ImageRecord(
        image=image, y=group[0], a=group[1], prompt=prompt, text=prompt, replica=0, seed=image, sets=list(sets),
        file=file_name(image, f"{image:012x}"), attempt=0, rejected=[],
    )  # fmt: skip


def test_prompts_are_held_out_as_a_whole_also_from_the_biased_set() -> None:
    groups = [(0, 0), (0, 1), (1, 0), (1, 1)]
    records = [
        record(100 * i + j, group, f"{i} {j % 10}", "balanced" if j < 50 else "biased")
        for i, group in enumerate(groups)
        for j in range(80)
    ]
    held, again = hold_out(records, 0.2), hold_out(records[::-1], 0.2)
    assert held == again
    by_file = {one.file: one for one in records}
    assert not {by_file[file].prompt for file in held.train} & {by_file[file].prompt for file in held.judge}
    assert {by_file[file].sets[0] for file in held.judge} == {"balanced"}
    for group in groups:
        assert sum(by_file[file].group == group for file in held.judge) == 10  # two of ten prompts, five images of each
        assert sum(by_file[file].group == group for file in held.train) == 64


def test_images_without_prompts_are_split_one_by_one() -> None:
    records = [record(i, (i % 2, 0), "", "balanced") for i in range(40)]
    held = hold_out(records, 0.25)
    assert (len(held.judge), len(held.train)) == (10, 30)


def test_a_group_of_one_prompt_cannot_be_split() -> None:
    with pytest.raises(AimfairError, match=r"tune.held_out: .* group \(0, 0\) have 1 prompts.*raise prompts.per_group"):
        hold_out([record(i, (0, 0), "one", "balanced") for i in range(9)], 0.2)


def test_validation_halves_share_no_cluster() -> None:
    clusters = tuple(f"person {i // 3}" for i in range(30))
    zeros = np.zeros(30, dtype=np.int64)
    images = ImageSet(np.zeros((30, 2, 2, 3), np.uint8), zeros, zeros, tuple(map(str, range(30))), {}, clusters)
    train, judge = validation_halves(images)
    assert not set(train.clusters) & set(judge.clusters)
    assert len(train) == len(judge) == 15


# -- sampler -----------------------------------------------------------------------------------------------------------


def test_a_proposal_is_a_function_of_its_arguments() -> None:
    earlier = [trial(i, 0.9 - 0.01 * i, 0.8 + 0.01 * i) for i in range(12)]
    given = {"lr": 0.01, "epochs": 10, "density": 0.3, "rule": "random", "criterion": "difference"}
    first, again, other = (propose(SPACE, given, earlier, 7, "full", number) for number in (12, 12, 13))
    assert first == again != other
    assert 1e-4 <= first["lr"] <= 1e-1
    assert 2 <= first["epochs"] <= 20
    assert (first["rule"], first["criterion"]) in SPACE.rules


def test_it_learns_from_both_objectives() -> None:
    """The first objective prefers low rates, the second few epochs: proposals approach both."""

    def tried(number: int, values: dict[str, Any]) -> Trial:
        worst = 1 + 0.2 * np.log10(values["lr"] / 0.1) ** 2 / -9 * 4
        return trial(number, 1 - abs(worst - 1), 1 - values["epochs"] / 40).model_copy(update={"values": values})

    given = {"lr": 0.05, "epochs": 20}
    space = Space(lr=(1e-4, 1e-1), epochs=(2, 20))
    trials = [tried(0, given)]
    for number in range(1, 30):
        trials.append(tried(number, propose(space, given, trials, "learns", number)))
    late = trials[-10:]
    assert np.median([one.values["lr"] for one in late]) > 0.01
    assert np.median([one.values["epochs"] for one in late]) < 8


# -- choice ------------------------------------------------------------------------------------------------------------


def test_the_front() -> None:
    trials = [trial(0, 0.9, 0.8), trial(1, 0.8, 0.9), trial(2, 0.8, 0.85), trial(3, 0.7, 0.9), pruned(4)]
    assert [one.number for one in front(trials)] == [0, 1]


def test_of_trials_that_are_equally_fair_the_most_accurate_is_chosen() -> None:
    trials = [trial(0, 0.900, 0.80), trial(1, 0.895, 0.85), trial(2, 0.80, 0.95), pruned(3)]
    assert choose(trials, None) is trials[1]  # 1,000 images: a standard error of 0.0095
    assert choose(trials, 0.0) is trials[0]
    assert choose(trials, 0.2) is trials[2]
    assert choose([pruned(0)], None) is None


def test_ties_go_to_the_smaller_change_then_to_the_earlier_trial() -> None:
    trials = [trial(0, 0.9, 0.8, 0.3), trial(1, 0.9, 0.8, 0.1), trial(2, 0.9, 0.8, 0.1)]
    assert choose(trials, None) is trials[1]


def test_the_standard_error_is_that_of_the_mean_over_the_seeds() -> None:
    one = trial(0, 0.9, 0.8)
    four = one.model_copy(update={"seeds": one.seeds * 4})
    assert one.worst_error == pytest.approx(np.sqrt(0.9 * 0.1 / 1000), rel=0.01)
    assert four.worst_error == pytest.approx(one.worst_error / 2)
    assert trial(0, 1.0, 0.8).worst_error > 0


def curve(*values: float, epochs: int | None = None) -> Stopped:
    return Stopped(curve=[Point(worst=value, accuracy=value) for value in values], epochs=epochs or len(values))


def now(value: float, epochs: int, accuracy: float | None = None) -> Stopped:
    """After so many of ten epochs."""
    step = Point(worst=value, accuracy=value if accuracy is None else accuracy)
    return Stopped(curve=[step] * epochs, epochs=10)


def test_weak_is_what_half_of_the_earlier_ones_surpass_in_both() -> None:
    good, poor = curve(*[0.9] * 10), curve(*[0.5] * 10)
    assert is_weak(now(0.7, 5), [good, good, poor, poor])
    assert not is_weak(now(0.7, 5), [good, poor, poor, poor])
    assert not is_weak(now(0.7, 5), [good, good, good])  # too few to tell
    assert not is_weak(now(0.7, 2), [good] * 4)  # too early
    assert not is_weak(now(0.7, 10), [good] * 4)  # it is done
    assert not is_weak(now(0.7, 5, accuracy=0.95), [good] * 4)
    assert not is_weak(curve(0.95, 0.7, 0.7, 0.7, epochs=10), [good] * 4)  # its best counts, epochs are noisy


def test_pruned_trials_count_as_far_as_they_came() -> None:
    good, stopped = curve(*[0.9] * 10), curve(*[0.5] * 5, epochs=10)
    assert not is_weak(now(0.7, 5), [good, good, stopped, stopped, stopped])
    assert is_weak(now(0.7, 6), [good, good, good, good, stopped])
    assert not is_weak(now(0.7, 6), [good, good, good, stopped, stopped])  # three came as far


def test_the_same_share_of_the_epochs_is_compared() -> None:
    curves = [curve(*[0.05 * (i + 1) for i in range(20)])] * 4
    assert is_weak(now(0.35, 4), curves)
    assert not is_weak(now(0.45, 4), curves)


def test_a_trial_tells_how_far_each_training_came() -> None:
    done = trial(0, 0.9, 0.8).seeds[0].model_copy(update={"curve": curve(0.5, 0.6).curve})
    stopped = Trial(number=1, values={}, state="pruned", seeds=[done], stopped=curve(0.4, epochs=7))
    assert stopped.training(0) == curve(0.5, 0.6)
    assert stopped.training(1) == curve(0.4, epochs=7)
    assert stopped.training(2) is None


def test_regret() -> None:
    trials = [
        trial(0, 0.90, 0.80, real=(0.50, 0.70)),
        trial(1, 0.90, 0.85, real=(0.60, 0.72)),
        trial(2, 0.80, 0.90, real=(0.70, 0.75)),
        trial(3, 0.70, 0.95, real=(0.60, 0.80)),
    ]
    chosen = choose(trials, None)
    assert chosen is trials[1]
    found = regret(trials, chosen)
    assert found is not None
    assert (found.chosen, found.given, found.by_labels, found.best) == ([0.72], [0.70], [0.75], [0.80])
    assert len(complete(trials)) == 4
    assert regret([trial(0, 0.9, 0.8)], trial(0, 0.9, 0.8)) is None
