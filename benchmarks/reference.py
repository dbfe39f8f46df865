"""The learners in textbook form: what ours are measured against, and must agree with.

One task at a time, support and query in two calls, PyTorch's own layers in their
default memory layout, gradients accumulated over the meta-batch. MAML by
`functional_call` and `autograd.grad(create_graph=True)` at each inner step."""

from collections.abc import Iterator, Sequence
from copy import deepcopy

import torch
import torch.nn.functional as F
from torch import nn
from torch.func import functional_call

from metadropout_nb.eb_meta_network import MetaNetwork
from metadropout_nb.maml import MAML
from metadropout_nb.tasks import TaskBatch, TaskSampler
from metadropout_nb.training import Learner, PrototypicalNetwork, class_means

Masks = list[torch.Tensor | None]  # of the four blocks and the embedding


class Conv4(nn.Module):
    "Four times convolution, batch norm, ReLU, mask, pool; then linear and a mask."

    def __init__(self, image_size: int, embedding_dim: int = 64):
        super().__init__()
        self.convs = nn.ModuleList(
            [nn.Conv2d(64 if i else 1, 64, 3, padding=1) for i in range(4)]
        )
        self.norms = nn.ModuleList([nn.BatchNorm2d(64) for _ in range(4)])
        self.linear = nn.Linear(64 * (image_size // 16) ** 2, embedding_dim)

    def forward(self, x: torch.Tensor, masks: Masks) -> torch.Tensor:
        *of_blocks, of_embedding = masks
        for conv, norm, mask in zip(self.convs, self.norms, of_blocks, strict=True):
            x = F.relu(norm(conv(x)))
            x = F.max_pool2d(x if mask is None else x * mask, 2)
        x = self.linear(x.flatten(1))
        return x if of_embedding is None else x * of_embedding.flatten(1)


class Reference(nn.Module):
    "The textbook twin of a learner, with the same weights."

    def __init__(self, learner: Learner):
        super().__init__()
        self.learner = learner.__class__
        self.num_classes, self.size = learner.num_classes, learner.network.image_size
        self.rates = [
            site.p if site.dropout != "none" else 0.0 for site in learner.network.sites
        ]
        self.network = Conv4(self.size).to(learner.network.linear.weight)
        self.network.linear.load_state_dict(learner.network.linear.state_dict())
        for i, block in enumerate(learner.network.blocks):
            plain = {
                name: tensor.contiguous()
                for name, tensor in block.conv.state_dict().items()
            }
            self.network.convs[i].load_state_dict(plain)
            self.network.norms[i].load_state_dict(block.norm.state_dict())
        if isinstance(learner, MAML):
            self.head = deepcopy(learner.head)
            self.inner_lr, self.inner_steps = (
                float(learner.inner_lr[0]),
                learner.inner_steps,
            )
            self.first_order = learner.first_order
        elif not isinstance(learner, PrototypicalNetwork):
            self.meta_learner = deepcopy(learner.meta_learner)

    def parameters_by_block(self) -> Iterator[nn.Parameter]:
        "In the order of the learner's own parameters."
        for conv, norm in zip(self.network.convs, self.network.norms, strict=True):
            yield from (*conv.parameters(), *norm.parameters())
        yield from self.network.linear.parameters()
        yield from getattr(
            self, "head", getattr(self, "meta_learner", nn.Module())
        ).parameters()

    def draw_masks(self) -> Masks:
        "New masks for the next task, by torch's own generator."
        weight = self.network.linear.weight
        shapes = [(1, 64, self.size // 2**i, self.size // 2**i) for i in range(4)]
        return [
            None
            if p == 0 or not self.training
            else torch.empty(shape).bernoulli_(1 - p).to(weight) / (1 - p)
            for p, shape in zip(self.rates, [*shapes, (1, len(weight))], strict=True)
        ]

    def forward(
        self,
        support_x: torch.Tensor,
        support_y: torch.Tensor,
        query_x: torch.Tensor,
        masks: Masks,
        query_masks: Masks | None = None,  # None: the support set's
    ) -> torch.Tensor:
        query_masks = masks if query_masks is None else query_masks
        if issubclass(self.learner, MAML):
            inputs = support_x, support_y, query_x
            return self.adapt_and_classify(*inputs, masks, query_masks)
        support = self.network(support_x, masks)
        query = self.network(query_x, query_masks)
        if issubclass(self.learner, PrototypicalNetwork):
            prototypes = class_means(support, support_y, self.num_classes)
            return -(query[:, None] - prototypes).square().sum(-1)
        head, n = self.meta_learner, self.num_classes
        hidden = support @ head.U.T + head.e
        if issubclass(self.learner, MetaNetwork):
            return query @ head.V.T @ class_means(hidden, support_y, n).T
        classes = class_means(hidden.tanh(), support_y, n)
        return query @ head.weight_generator(classes).T + head.bias_generator(classes).T

    def adapt_and_classify(
        self, support_x, support_y, query_x, masks: Masks, query_masks: Masks
    ) -> torch.Tensor:
        """Batch statistics in every pass, as public code mostly has it.

        The query samples see each other."""
        fast = {
            **dict(self.network.named_parameters()),
            **{f"head.{k}": v for k, v in self.head.named_parameters()},
        }

        def classify(fast, x, masks):
            body = {name: p for name, p in fast.items() if not name.startswith("head.")}
            return F.linear(
                functional_call(self.network, body, (x, masks)),
                fast["head.weight"],
                fast["head.bias"],
            )

        second_order = self.training and not self.first_order
        self.network.train()
        with torch.enable_grad():
            for _ in range(self.inner_steps):
                loss = F.cross_entropy(classify(fast, support_x, masks), support_y)
                gradients = torch.autograd.grad(
                    loss, list(fast.values()), create_graph=second_order
                )
                fast = {
                    name: p - self.inner_lr * gradient
                    for (name, p), gradient in zip(fast.items(), gradients, strict=True)
                }
        return classify(fast, query_x, query_masks)


def train(
    reference: Reference, sampler: TaskSampler, n_tasks: int, meta_batch: int
) -> None:
    "As the textbook has it."
    optimizer = torch.optim.Adam(reference.parameters(), lr=1e-3)
    reference.train()
    for first in range(0, n_tasks, meta_batch):
        tasks = sampler.sample(min(meta_batch, n_tasks - first))
        optimizer.zero_grad()
        for i in range(len(tasks)):
            task = tasks[i]
            logits = reference(
                task.support_x, task.support_y, task.query_x, reference.draw_masks()
            )
            (F.cross_entropy(logits, task.query_y) / len(tasks)).backward()
        nn.utils.clip_grad_norm_(reference.parameters(), 1.0)
        optimizer.step()


@torch.no_grad()
def test(reference: Reference, tasks: TaskBatch) -> Sequence[float]:
    "Accuracy of each task, one task at a time."
    reference.eval()
    found = []
    for i in range(len(tasks)):
        task = tasks[i]
        logits = reference(
            task.support_x, task.support_y, task.query_x, reference.draw_masks()
        )
        found.append(float((logits.argmax(-1) == task.query_y).float().mean()))
    return found
