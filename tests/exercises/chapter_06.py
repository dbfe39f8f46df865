"""Answers of chapter 06 that look right and are not."""

import torch


def transposed(head):
    "Queries from the right."
    return head.U.T @ head.V


def side_of_hidden(head):
    "Multiplies the other sides: `[H, H]`."
    return head.V @ head.U.T


def with_itself(head):
    "Forgets that queries have a map of their own."
    return head.U.T @ head.U


def with_offset(head):
    "Adds the offset to the class's map, as if it were part of it."
    return head.V.T @ (head.U + head.e[:, None] + 1)


def all_parameters(head):
    "Counts `e`."
    return sum(p.numel() for p in head.parameters())


def one_map(head):
    "Counts one of the two maps."
    return head.U.numel()


def entries_of_s(head):
    "Counts the entries of S."
    return head.U.shape[1] ** 2


def always_the_default(head):
    "The right number for one head only."
    return 2 * 64 * 128


def plain_similarity(queries, means):
    "The stub."
    return 2 * queries @ means.T


def wrong_sign(queries, means):
    "Favours long means."
    return 2 * queries @ means.T + means.square().sum(-1)


def length_not_squared(queries, means):
    "The length where its square is asked."
    return 2 * queries @ means.T - means.norm(dim=-1)


def length_of_queries(queries, means):
    "Takes the length that cancels."
    return 2 * queries @ means.T - queries.square().sum(-1, keepdim=True)


def half_the_similarity(queries, means):
    "Forgets the 2."
    return queries @ means.T - means.square().sum(-1)


def first_rows(S, hidden_dim):
    "The stub: keeps the first rows."
    return S[:hidden_dim], torch.eye(64)[:hidden_dim]


def smallest_values(S, hidden_dim):
    "Keeps the least of S."
    left, sizes, right = torch.linalg.svd(S)
    return sizes[-hidden_dim:, None] * right[-hidden_dim:], left.T[-hidden_dim:]


def transposed_product(S, hidden_dim):
    "Comes near to the transpose of S."
    left, sizes, right = torch.linalg.svd(S)
    return left.T[:hidden_dim], sizes[:hidden_dim, None] * right[:hidden_dim]


def without_sizes(S, hidden_dim):
    "The right directions, and forgets how much each counts."
    left, _, right = torch.linalg.svd(S)
    return right[:hidden_dim], left.T[:hidden_dim]


def one_learner():
    "Compares with nothing."
    return [("eb", seed) for seed in range(5)]


def other_seeds():
    "The same number of seeds, and no pairs."
    return [("eb", seed) for seed in range(5)] + [("proto", 5 + s) for s in range(5)]


def one_seed():
    "A pair, once."
    return [("eb", 0), ("proto", 0)] * 5


def other_learners():
    "Two learners that do not differ in the ruler alone."
    return [(name, seed) for name in ("eb", "maml") for seed in range(5)]


def by_class_name():
    "Names of classes, and not of learners."
    return [(n, s) for n in ("MetaNetwork", "PrototypicalNetwork") for s in range(5)]


WRONG = {
    "06.1": [transposed, side_of_hidden, with_itself, with_offset],
    "06.2": [all_parameters, one_map, entries_of_s, always_the_default],
    "06.3": [
        plain_similarity,
        wrong_sign,
        length_not_squared,
        length_of_queries,
        half_the_similarity,
    ],
    "06.4": [first_rows, smallest_values, transposed_product, without_sizes],
    "06.5": [one_learner, other_seeds, one_seed, other_learners, by_class_name],
}
