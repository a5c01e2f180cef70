from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
import torch
from sklearn.cluster import kmeans_plusplus
from torch import Tensor
from torch.nn.functional import normalize

from backend.learning.head import Head
from backend.learning.strategies import STRATEGIES, Pool, combine, put_first
from backend.learning.uncertainty import entropy, least_certain_label, least_confidence, margin

MEASURES = {"margin": margin, "entropy": entropy, "least": least_confidence}
DIVERSE = [name for name, strategy in STRATEGIES.items() if strategy.pick is not None]
CLASSES, SIZE = 4, 16


def head(*, multiple: bool = False) -> Head:
    draw = torch.Generator().manual_seed(1)
    weights = 5 * torch.randn(CLASSES, SIZE, generator=draw)
    return Head(weights, torch.zeros(CLASSES), multiple=multiple)


def pool(count: int, labelled: int = 0, *, multiple: bool = False, seed: int = 0) -> Pool:
    draw = torch.Generator().manual_seed(seed)
    vectors = normalize(torch.randn(count + labelled, SIZE, generator=draw) + 1, dim=1)
    keys = [f"task {number}" for number in range(count)]
    return Pool(vectors[:count], head(multiple=multiple), vectors[count:], keys)


def clusters(sizes: list[int], spread: float = 0.01) -> Tensor:
    """Pictures in tight clusters of these sizes, one after the other."""
    draw = torch.Generator().manual_seed(2)
    centres = torch.eye(SIZE)[: len(sizes)]
    rows = [
        centre + spread * torch.randn(size, SIZE, generator=draw)
        for centre, size in zip(centres, sizes, strict=True)
    ]
    return normalize(torch.cat(rows), dim=1)


def cluster_of(index: int, sizes: list[int]) -> int:
    return int(np.searchsorted(np.cumsum(sizes), index, side="right"))


def order(strategy: str, of: Pool) -> list[int]:
    uncertainties: list[int] = (
        STRATEGIES[strategy](of).argsort(descending=True, stable=True).tolist()
    )
    return uncertainties


def test_the_strategies_have_the_names_that_users_set() -> None:
    assert set(STRATEGIES) == {
        *("auto", "margin", "entropy", "least", "random"),
        *("bald", "coreset", "typiclust", "badge", "dropquery"),
    }


@pytest.mark.parametrize("name", MEASURES)
def test_a_strategy_is_its_measure_on_one_softmax(name: str) -> None:
    of = pool(20)

    probabilities = of.head.probabilities(of.embeddings)
    assert torch.equal(STRATEGIES[name](of), MEASURES[name](probabilities))


@pytest.mark.parametrize("name", MEASURES)
def test_a_strategy_takes_the_least_certain_of_multiple_labels(name: str) -> None:
    of = pool(20, multiple=True)

    expected = least_certain_label(of.head.probabilities(of.embeddings), MEASURES[name])
    assert torch.equal(STRATEGIES[name](of), expected)


@pytest.mark.parametrize("multiple", [False, True])
@pytest.mark.parametrize("count", [1, 2, 150])
@pytest.mark.parametrize("labelled", [0, 1, 30])
@pytest.mark.parametrize("name", STRATEGIES)
def test_every_strategy_gives_an_uncertainty_to_each_picture(
    name: str, labelled: int, count: int, multiple: bool
) -> None:
    uncertainties = STRATEGIES[name](pool(count, labelled, multiple=multiple))

    assert uncertainties.shape == (count,)
    assert uncertainties.dtype == torch.float32
    assert ((uncertainties >= 0) & (uncertainties <= 1)).all()


@pytest.mark.parametrize("multiple", [False, True])
@pytest.mark.parametrize("name", STRATEGIES)
def test_every_strategy_takes_no_tasks(name: str, multiple: bool) -> None:
    assert STRATEGIES[name](pool(0, 3, multiple=multiple)).shape == (0,)


@pytest.mark.parametrize("name", STRATEGIES)
def test_every_strategy_takes_float16_and_a_pool_of_the_same_picture(name: str) -> None:
    one = pool(1).embeddings.half()
    of = Pool(one.repeat(30, 1), head(), one, [str(number) for number in range(30)])

    assert STRATEGIES[name](of).isfinite().all()


@pytest.mark.parametrize("name", STRATEGIES)
def test_every_strategy_says_the_same_of_the_same_pool(name: str) -> None:
    assert torch.equal(STRATEGIES[name](pool(200, 10)), STRATEGIES[name](pool(200, 10)))


@pytest.mark.parametrize("name", DIVERSE)
def test_a_diverse_strategy_deals_out_the_uncertainties_of_its_measure(name: str) -> None:
    of = pool(300, 10)

    dealt, measured = STRATEGIES[name](of), STRATEGIES[name].measure(of)
    torch.testing.assert_close(dealt.sort().values, measured.sort().values, atol=1e-3, rtol=0)
    assert not torch.equal(dealt, measured)


@pytest.mark.parametrize("name", DIVERSE)
def test_a_diverse_strategy_does_not_ask_twice_about_the_same_thing(name: str) -> None:
    sizes = [30, 30, 30, 30, 30]
    # A head that knows nothing: what differs is where the pictures lie.
    of = Pool(
        clusters(sizes), Head(torch.zeros(2, SIZE), torch.zeros(2), multiple=False),
        torch.empty(0, SIZE), [str(number) for number in range(150)],
    )  # fmt: skip

    first = order(name, of)[: len(sizes)]
    assert len({cluster_of(index, sizes) for index in first}) >= 4


@pytest.mark.parametrize("name", ["coreset", "typiclust"])
def test_what_lies_near_a_label_comes_later(name: str) -> None:
    sizes = [30, 30, 30]
    vectors = clusters(sizes)
    of = Pool(vectors, head(), vectors[:60], [str(number) for number in range(90)])

    assert cluster_of(order(name, of)[0], sizes) == 2


def test_coreset_is_greedy_k_centre() -> None:
    of = pool(60, 5)
    x = of.embeddings.numpy()

    centres, expected = of.labelled.numpy(), []
    for _ in range(10):
        distances = ((x[:, None] - centres[None]) ** 2).sum(axis=2).min(axis=1)
        expected.append(int(distances.argmax()))
        centres = np.concatenate([centres, x[[expected[-1]]]])
    assert order("coreset", of)[:10] == expected


def test_typiclust_starts_with_the_largest_cluster_and_its_middle() -> None:
    sizes = [20, 80, 40]
    vectors = clusters(sizes, spread=0.05)
    # As many clusters as pictures to be picked would split these.
    of = Pool(vectors, head(), torch.empty(0, SIZE), [str(number) for number in range(140)])

    typical = vectors[20:100].mean(dim=0)
    distances = (vectors - typical).norm(dim=1)
    assert distances[order("typiclust", of)[0]] < distances[20:100].median()


def test_badge_is_k_means_plus_plus_on_gradients() -> None:
    of = pool(80)
    probabilities = of.head.probabilities(of.embeddings)
    residuals = probabilities.clone()
    residuals[torch.arange(80), probabilities.argmax(dim=1)] -= 1
    gradients = torch.einsum("nk,nd->nkd", residuals, of.embeddings).reshape(80, -1).numpy()

    def cost(picked: list[int]) -> float:
        centres = gradients[picked]
        return float(((gradients[:, None] - centres[None]) ** 2).sum(axis=2).min(axis=1).sum())

    theirs = [
        cost(kmeans_plusplus(gradients, 10, random_state=seed, n_local_trials=1)[1].tolist())
        for seed in range(50)
    ]
    first = order("badge", of)[:10]
    assert first[0] == int(np.square(gradients).sum(axis=1).argmax())
    assert min(theirs) * 0.8 <= cost(first) <= max(theirs)


def test_bald_is_low_where_heads_agree_and_high_where_they_do_not() -> None:
    weights = torch.zeros(2, SIZE)
    weights[0, :2] = torch.tensor([40.0, -40.0])
    # The first relies on two components that may each be dropped, the second on none.
    pictures = torch.zeros(2, SIZE)
    pictures[0, :2] = 0.7
    pictures[1, 5] = 1
    of = Pool(pictures, Head(weights, torch.zeros(2), multiple=False), pictures[:0], ["a", "b"])

    disputed, agreed = STRATEGIES["bald"](of).tolist()
    assert disputed > 0.1
    assert agreed == pytest.approx(0, abs=1e-6)


def test_dropquery_asks_about_unstable_pictures_first() -> None:
    # Along a choice's own weights no dropout changes the label; in other directions it does.
    others = pool(100).embeddings - 0.25
    stable = head().weights.repeat(25, 1)
    pictures = normalize(torch.cat([stable, others]), dim=1)
    of = Pool(pictures, head(), pictures[:0], [str(number) for number in range(200)])

    assert sum(index >= 100 for index in order("dropquery", of)[:30]) >= 25


def test_the_picked_come_first_in_their_order_and_the_others_keep_theirs() -> None:
    dealt = put_first(torch.tensor([0.1, 0.9, 0.5, 0.7]), torch.tensor([0, 2]))

    torch.testing.assert_close(dealt, torch.tensor([0.9, 0.5, 0.7, 0.1]), atol=1e-5, rtol=0)


@pytest.mark.parametrize("value", [0.0, 0.5, 1.0])
def test_the_order_of_the_picked_survives_equal_uncertainties_and_rounding(value: float) -> None:
    picked = torch.tensor([7, 3, 5])

    dealt = put_first(torch.full((10,), value), picked)
    rounded = [round(number, 6) for number in dealt.tolist()]
    assert rounded[7] > rounded[3] > rounded[5] > max(rounded[index] for index in (0, 1, 2, 4))
    assert 0 <= min(rounded) <= max(rounded) <= 1


def test_random_depends_on_a_tasks_key_alone() -> None:
    keys = ["task 1, version 3", "task 2, version 3", "task 3, version 3"]
    forwards = draw(keys)
    backwards = draw(keys[::-1])

    assert torch.equal(forwards, backwards.flip(0))
    assert not torch.equal(forwards, draw(["task 1, version 4", *keys[1:]]))


def test_random_is_the_same_in_another_process() -> None:
    keys = ["task 1", "task 2"]
    program = (
        "import torch; from backend.learning.strategies import STRATEGIES, Pool;"
        f"print(STRATEGIES['random'](Pool(torch.ones(2, 1), None, None, {keys})).tolist())"
    )

    other = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )

    assert other.stdout.strip() == str(draw(keys).tolist())


def test_random_is_uniform_below_1() -> None:
    draws = draw([f"task {number}" for number in range(10_000)])

    shares = draws.histc(bins=10, min=0, max=1) / len(draws)
    assert draws.max() < 1
    torch.testing.assert_close(shares, torch.full((10,), 0.1), atol=0.015, rtol=0)


def test_random_knows_keys_of_any_script() -> None:
    assert len(set(draw(["tâche 1", "タスク 1", "绘画 1"]).tolist())) == 3


def test_the_least_certain_control_decides() -> None:
    first, second = torch.tensor([0.1, 0.9, 0.5]), torch.tensor([0.3, 0.2, 0.5])

    assert torch.equal(combine([first, second]), torch.tensor([0.3, 0.9, 0.5]))


def test_one_control_decides_alone() -> None:
    only = torch.tensor([0.1, 0.9])

    assert torch.equal(combine([only]), only)


def draw(keys: list[str]) -> Tensor:
    return STRATEGIES["random"](Pool(torch.ones(len(keys), 1), head(), torch.ones(0, 1), keys))
