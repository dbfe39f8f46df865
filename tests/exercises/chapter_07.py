"""Answers of chapter 07 that look right and are not."""

import copy

import torch

from metadropout_nb.original_meta_network import OriginalMetaNetwork
from metadropout_nb.training import class_means


def without_biases(embedding_dim, n_way, k_shot):
    "Forgets `b`."
    return embedding_dim * n_way


def one_bias(embedding_dim, n_way, k_shot):
    "One bias for all classes."
    return embedding_dim * n_way + 1


def by_shots(embedding_dim, n_way, k_shot):
    "Writes a column for every sample."
    return (embedding_dim + 1) * n_way * k_shot


def wrong_way_round(W, b, rename):
    "Puts old column rename[c] at place c."
    return W[:, rename], b[rename]


def bias_left(W, b, rename):
    "Renames the columns and not the biases."
    return W[:, rename.argsort()], b


def bias_wrong_way_round(W, b, rename):
    "Renames the biases the other way."
    return W[:, rename.argsort()], b[rename]


def weights_only(W, b, rename):
    "Returns W alone."
    return W[:, rename.argsort()]


def in_place(learner, n_way):
    "Changes the old learner."
    learner.num_classes = learner.meta_learner.num_classes = n_way
    return learner


def new_weights(learner, n_way):
    "Forgets the weights."
    network = learner.network
    return OriginalMetaNetwork(num_classes=n_way, image_size=network.image_size).eval()


def in_train_mode(learner, n_way):
    "Forgets `.eval()`."
    network = learner.network
    new = OriginalMetaNetwork(num_classes=n_way, image_size=network.image_size)
    new.load_state_dict(learner.state_dict())
    return new


def head_unchanged(learner, n_way):
    "Tells the learner and not its meta-learner: that raises."
    new = copy.deepcopy(learner)
    new.num_classes = n_way
    return new


def always_ten(learner, n_way):
    "Ignores `n_way`: a task of another raises."
    network = learner.network
    new = OriginalMetaNetwork(num_classes=10, image_size=network.image_size)
    new.load_state_dict(learner.state_dict())
    return new.eval()


def means(vectors, labels, num_classes):
    "The summary that we have already."
    return class_means(vectors, labels, num_classes)


def members(labels, num_classes):
    return labels[..., None, :] == torch.arange(num_classes)[:, None]


def zero_filled(vectors, labels, num_classes):
    "Absent samples count as zero."
    member = members(labels, num_classes)[..., None]
    return (member * vectors[..., None, :, :]).amax(-2)


def equal_shots(vectors, labels, num_classes):
    "Sorts by label, and takes all classes to be equally large."
    order = labels.argsort(dim=-1, stable=True)[..., None].expand_as(vectors)
    by_class = vectors.gather(-2, order)
    return by_class.unflatten(-2, (num_classes, -1)).amax(-2)


def one_task_only(vectors, labels, num_classes):
    "Cannot take several tasks."
    return torch.stack([vectors[labels == c].amax(0) for c in range(num_classes)])


def without_masks():
    "Measures in eval mode."
    return {"meta": (0.0, 0.0), "standard": (0.0, 0.0)}


def the_same_task_twice():
    "Forgets to change the number of shots."
    return {"meta": (0.035, 0.035), "standard": (0.034, 0.034)}


def five_shots_first():
    "The wrong order."
    return {"meta": (0.03, 0.035), "standard": (0.017, 0.034)}


def ratios_only():
    "Returns what the checker computes, which raises."
    return {"meta": 0.9, "standard": 0.5}


WRONG = {
    "07.1": [without_biases, one_bias, by_shots],
    "07.2": [wrong_way_round, bias_left, bias_wrong_way_round, weights_only],
    "07.3": [in_place, new_weights, in_train_mode, head_unchanged, always_ten],
    "07.4": [means, zero_filled, equal_shots, one_task_only],
    "07.5": [without_masks, the_same_task_twice, five_shots_first, ratios_only],
}
