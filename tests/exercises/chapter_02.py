"""Answers to the exercises of chapter 02 that look right and are not."""

import math

import numpy as np

from metadropout_nb.tasks import TaskSampler


def in_order(n_classes, n_way):
    "Counts each set once for every order of its classes."
    return math.perm(n_classes, n_way)


def with_replacement(n_classes, n_way):
    "Lets a class come twice."
    return n_classes**n_way


def multisets(n_classes, n_way):
    "Without order, but a class may come twice."
    return math.comb(n_classes + n_way - 1, n_way)


def two_draws(n_drawings, k_shot, n_query, rng):
    "Support and query do not know of each other."
    return tuple(rng.choice(n_drawings, n, replace=False) for n in (k_shot, n_query))


def same_deck(n_drawings, k_shot, n_query, rng):
    "A deck that nobody shuffled."
    return range(k_shot), range(k_shot, k_shot + n_query)


def two_halves(n_drawings, k_shot, n_query, rng):
    "Some drawings are only ever shown, others only ever asked for."
    support = rng.permutation(k_shot)
    return support, k_shot + rng.permutation(n_drawings - k_shot)[:n_query]


def own_generator(n_drawings, k_shot, n_query, rng):
    "Ignores `rng`: no seed brings a task back."
    deck = np.random.default_rng().permutation(n_drawings)
    return deck[:k_shot], deck[k_shot : k_shot + n_query]


def members_of(names):
    members = {}
    for i, name in enumerate(names):
        members.setdefault(name.split("/")[0], []).append(i)
    return list(members.values())


def any_alphabet(names, n_way, rng):
    "Classes from everywhere."
    return rng.choice(len(names), n_way, replace=False)


def too_few(names, n_way, rng):
    "Alphabets with too few characters are not left out: `choice` raises."
    return rng.choice(
        members_of(names)[rng.integers(3)], n_way, replace=False, shuffle=True
    )


def sorted_classes(names, n_way, rng):
    "In the order of the alphabet."
    large = [m for m in members_of(names) if len(m) >= n_way]
    return sorted(rng.choice(large[rng.integers(len(large))], n_way, replace=False))


def first_characters(names, n_way, rng):
    "Always the first five of an alphabet."
    large = [m for m in members_of(names) if len(m) >= n_way]
    return rng.permutation(large[rng.integers(len(large))][:n_way])


def only_the_largest(names, n_way, rng):
    "One alphabet, the same every time."
    return rng.choice(max(members_of(names), key=len), n_way, replace=False)


def unseeded(names, n_way, rng):
    "Ignores `rng`: no seed brings the classes back."
    rng = np.random.default_rng()
    large = [m for m in members_of(names) if len(m) >= n_way]
    return rng.choice(large[rng.integers(len(large))], n_way, replace=False)


def everybody_from_the_start(sampler, worker, n_workers, n_tasks):
    "All workers draw the same tasks."
    return [sampler.sample(1) for _ in range(math.ceil(n_tasks / n_workers))]


def remainder_lost(sampler, worker, n_workers, n_tasks):
    "Equal blocks: what is left over nobody draws."
    sampler.next_task = worker * (n_tasks // n_workers)
    return [sampler.sample(1) for _ in range(n_tasks // n_workers)]


def one_too_many(sampler, worker, n_workers, n_tasks):
    "Blocks rounded up: the last worker goes beyond the end."
    size = math.ceil(n_tasks / n_workers)
    sampler.next_task = worker * size
    return [sampler.sample(1) for _ in range(size)]


def a_seed_each(sampler, worker, n_workers, n_tasks):
    "No repeats, but another stream."
    own = TaskSampler(sampler.characters, n_query=sampler.n_query, seed=worker)
    return [own.sample(1) for _ in range(worker, n_tasks, n_workers)]


def first_five(characters):
    "Any five."
    return range(5)


def one_class(characters):
    "One class five times: nobody can tell them apart, but it is no task."
    return [0] * 5


def least_ink(characters):
    "Little ink has little to miss with, but these differ in place."
    ink = characters.images.float().mean((1, 2, 3))
    return ink.argsort()[:5].tolist()


def far_apart(characters):
    "The largest distances, not the smallest."
    means = characters.images.float().mean(1)
    apart = (means[:, None] - means).square().sum((1, 2, 3))
    return apart.argsort()[-5:].tolist()


WRONG = {
    "02.1": [in_order, with_replacement, multisets],
    "02.2": [two_draws, same_deck, two_halves, own_generator],
    "02.3": [
        any_alphabet,
        too_few,
        sorted_classes,
        first_characters,
        only_the_largest,
        unseeded,
    ],
    "02.4": [everybody_from_the_start, remainder_lost, one_too_many, a_seed_each],
    "02.5": [first_five, one_class, least_ink, far_apart],
}
