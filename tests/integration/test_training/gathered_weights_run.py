"""Step with ZeRO-3 and print how many of the gathered weights are not what the steps make them.

The first weight takes far longer to gather than the last one.
"""

import deepspeed
import torch
from torch import nn

from pixelsail_mm.engine.strategies.deepspeed import adapt, read_preset, skip_shared_memory_op

STEPS, LR = 6, 0.5


class Weights(nn.Module):
    """Weights whose gradients are 1 everywhere, whatever the input."""

    def __init__(self) -> None:
        super().__init__()
        self.large = nn.Parameter(torch.zeros(8_000_000))
        self.small = nn.Parameter(torch.zeros(8))

    def forward(self) -> torch.Tensor:
        """Add them up."""
        return self.large.sum() + self.small.sum()


def main() -> None:
    """Print ``wrong: N`` in the first process, N summed over steps and processes."""
    skip_shared_memory_op()
    deepspeed.init_distributed('gloo')
    config = adapt(read_preset('zero3'), 1, 1, 0.0)
    config['zero_optimization']['stage3_param_persistence_threshold'] = 10**8
    model = Weights()
    engine, *_ = deepspeed.initialize(
        model=model, optimizer=torch.optim.SGD(model.parameters(), lr=LR), config=config
    )
    wrong = torch.zeros(())
    for step in range(1, STEPS + 1):
        engine.backward(engine())
        engine.step()
        for weight in (model.large, model.small):
            wrong += (weight.detach() != -LR * step).sum()
    torch.distributed.all_reduce(wrong)
    if torch.distributed.get_rank() == 0:
        print(f'wrong: {int(wrong)}')


if __name__ == '__main__':
    main()
