"""Answers to the exercises of chapter 12 that look right and are not."""

import hashlib
import json
from dataclasses import replace

from safetensors.torch import load_file

from metadropout_nb.omniglot import Characters
from metadropout_nb.runs import build_learner


def rest_left_out(tasks, meta_batch):
    "Drops the last meta-batch where it is smaller."
    return tasks // meta_batch


def one_more(tasks, meta_batch):
    "One update too many where nothing is left over."
    return tasks // meta_batch + 1


def not_whole(tasks, meta_batch):
    "A quotient."
    return tasks / meta_batch


def is_there(folder):
    "Only asks whether there is a hash."
    return "sha256" in json.loads((folder / "learner.json").read_text())


def hash_of_the_text(folder):
    "Hashes the wrong file."
    about = folder / "learner.json"
    said = json.loads(about.read_text())["sha256"]
    return hashlib.sha256(about.read_bytes()).hexdigest() == said


def still_loads(folder):
    "Takes whatever loads for the same."
    try:
        return bool(load_file(folder / "weights.safetensors"))
    except Exception:
        return False


def offsets(path):
    "Takes the offsets for the shapes."
    data = path.read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    return {name: entry["data_offsets"] for name, entry in header.items()}


def big_endian(path):
    "Reads the length in the wrong order: what follows raises."
    data = path.read_bytes()
    length = int.from_bytes(data[:8], "big")
    header = json.loads(data[8 : 8 + length])
    return {name: entry["shape"] for name, entry in header.items()}


def from_the_start(path):
    "Forgets that the first 8 bytes are the length: it raises."
    data = path.read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[:length])
    return {name: entry["shape"] for name, entry in header.items()}


def untrained(learner, made, n_way):
    "A learner of the right ways, without the weights."
    return build_learner(replace(made, n_way=n_way, train_way=None)).eval()


def five_ways(learner, made, n_way):
    "Always the same five ways: a task of two raises."
    return learner.eval()


def train_mode(learner, made, n_way):
    "Weights and ways are right, the mode is not."
    wider = build_learner(replace(made, n_way=n_way, train_way=None))
    wider.load_state_dict(learner.state_dict())
    return wider.train()


def one_kind(characters):
    "A single kind has nothing to stand beside."
    return {"negatives": Characters(255 - characters.images, characters.names)}


def all_alike(characters):
    "Two names for the same images."
    return {"plain": characters, "copy": characters}


def bare_tensors(characters):
    "Tensors without names."
    return {"plain": characters.images, "negatives": 255 - characters.images}


WRONG = {
    "12.1": [rest_left_out, one_more, not_whole],
    "12.2": [is_there, hash_of_the_text, still_loads],
    "12.3": [offsets, big_endian, from_the_start],
    "12.4": [untrained, five_ways, train_mode],
    "12.5": [one_kind, all_alike, bare_tensors],
}
