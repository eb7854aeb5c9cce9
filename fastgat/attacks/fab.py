"""FAB-T (Croce and Hein 2020): the nearest point at which the model errs, by steps to its decision boundaries."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from fastgat.attacks.base import Attack, correct, gradient_of
from fastgat.kernels.images import per_sample
from fastgat.options import option

BIAS = 0.1  # alpha_max: at most so much of a step starts from x instead of x_i
OVERSHOOT = 1.05  # eta: how far a step goes beyond the hyperplane, which only approximates the boundary
BACKWARD = 0.9  # beta: how much of its distance from x a point keeps once the model errs there


@dataclass(frozen=True)
class FAB(Attack):
    """Algorithm 1 of "Minimally distorted adversarial examples with a fast adaptive boundary attack", targeted.

    For each of the `targets` likeliest wrong classes t in turn, x_0 = x, and each step

    (a) takes the boundary between t and the label y for its linearisation at x_i, the hyperplane
        pi = {z: z_t - z_y + <w, z - x_i> = 0}, with the logits z_t and z_y of x_i, and w = d(z_t - z_y)/dx;
    (b) projects x_i and x onto pi within the box: d_i = proj(x_i) - x_i and d = proj(x) - x;
    (c) goes to x_i+1 = (1 - alpha) (x_i + eta d_i) + alpha (x + eta d), kept in the box, with
        alpha = min(||d_i|| / (||d_i|| + ||d||), alpha_max);
    (d) where the model errs there, goes back towards x: x + beta (x_i+1 - x).

    A sample is left alone from the first point within epsilon at which the model errs. One without any such point
    becomes the nearest at which it errs, shortened to epsilon. As in AutoAttack there are no random starts, so that
    nothing is drawn, and no final search along the line to x.
    """

    steps: int = option(100, "steps towards the boundary with each class", at_least=1)
    targets: int = option(9, "classes to aim at", at_least=1)

    def perturb(self, images: Tensor, labels: Tensor, numbers: np.ndarray) -> Tensor:
        with torch.no_grad():
            logits = self.model(images)
        wrong_classes = logits.scatter(1, labels[:, None], -torch.inf).argsort(1, descending=True)
        nearest, distance = images.clone(), images.new_full((len(images),), torch.inf)
        distance[~correct(logits, labels)] = 0
        for target in range(min(self.targets, logits.shape[1] - 1)):
            rows = (distance > self.epsilon).nonzero().flatten()
            last = images[rows]
            for _ in range(self.steps):
                if not len(rows):
                    break
                x, y = images[rows], labels[rows]
                last = self._step(x, last, y, wrong_classes[rows, target])
                with torch.no_grad():
                    wrong = ~correct(self.model(last), y)
                length = self.length(last - x)
                closer = wrong & (length < distance[rows])
                nearest[rows[closer]], distance[rows[closer]] = last[closer], length[closer]
                last = torch.where(per_sample(wrong), x + BACKWARD * (last - x), last)
                left = distance[rows] > self.epsilon
                rows, last = rows[left], last[left]
        return self.projection(images)(nearest)

    def _step(self, x: Tensor, last: Tensor, labels: Tensor, targets: Tensor) -> Tensor:
        """x_i+1 from x_i, which is `last`: (a), (b) and (c)."""
        at = last.detach().requires_grad_()
        logits = self.model(at)
        difference = (logits.gather(1, targets[:, None]) - logits.gather(1, labels[:, None])).flatten()
        w = gradient_of(difference.sum(), at).nan_to_num()
        # The hyperplane stays the same, and squares of w neither overflow nor vanish.
        scale = w.flatten(1).abs().amax(1).clamp(min=1e-30)
        w, value = w / per_sample(scale), (difference.detach().nan_to_num() / scale).clamp(-1e30, 1e30)
        value_at_x = value + (w * (x - last)).flatten(1).sum(1)
        from_last, from_x = self._to_hyperplane(last, w, value), self._to_hyperplane(x, w, value_at_x)
        near, far = self.length(from_last), self.length(from_x)
        alpha = per_sample((near / (near + far).clamp(min=1e-12)).clamp(max=BIAS))
        ahead = (1 - alpha) * (last + OVERSHOOT * from_last) + alpha * (x + OVERSHOOT * from_x)
        return ahead.clamp_(0, 1) if self.clamp else ahead

    def _to_hyperplane(self, points: Tensor, w: Tensor, value: Tensor) -> Tensor:
        """The shortest way from points in the box to {z: value + <w, z - point> = 0} within the box, (b).

        It moves entry i by min(r v_i, room_i) against the sign of value w_i: room_i is the distance to that side of
        the box, v_i is 1 for linf and |w_i| for l2, and r the number for which sum |w_i| min(r v_i, room_i) = |value|.
        Where the box does not reach the hyperplane, every entry goes as far as it can.

        The sum rises with r along straight pieces, each flatter than the one before. So Newton's method from r = 0
        never goes beyond the solution, and has it once a step brings no further entry to the side of the box.
        """
        direction = -w.sign() * per_sample(value.sign())
        room = torch.where(direction > 0, 1 - points, points) if self.clamp else torch.full_like(points, torch.inf)
        size, goal = w.abs(), per_sample(value.abs())
        speed = size if self.norm == "l2" else direction.abs()
        rise, most = size * speed, size * room
        r, inside = torch.zeros_like(goal), room > 0
        while True:
            slope = (rise * inside).sum((1, 2, 3), keepdim=True)
            reached = most.where(~inside, 0).sum((1, 2, 3), keepdim=True)
            r = torch.where(slope > 0, torch.maximum(r, (goal - reached) / slope), r)  # rounding must not turn it back
            before, inside = inside, inside & (r * speed < room)
            if inside.equal(before):
                return direction * torch.minimum(r * speed, room)
