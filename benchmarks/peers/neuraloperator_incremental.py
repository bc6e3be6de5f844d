"""Train neuraloperator's incremental FNO on a data file; `darcy_small.py` runs it.

Model, optimizer, schedule, losses and the settings of the trainer are those of the example that
neuraloperator ships for this trainer and this data. After every epoch the relative L2 error of the
test samples is measured by the same formula as on our side, outside of the clock.
"""

from __future__ import annotations

import argparse
import json
import time

import numpy as np
import torch
from neuralop import H1Loss, LpLoss
from neuralop.data.transforms.data_processors import IncrementalDataProcessor
from neuralop.models import FNO
from neuralop.training import AdamW
from neuralop.training.incremental import IncrementalFNOTrainer
from neuralop.utils import count_model_params
from torch.utils.data import DataLoader, Dataset


class Pairs(Dataset):
    """Fields with one channel, as dictionaries."""

    def __init__(self, inputs: np.ndarray, outputs: np.ndarray) -> None:
        self.inputs = torch.tensor(inputs[:, None].astype(np.float32))
        self.outputs = torch.tensor(outputs[:, None].astype(np.float32))

    def __len__(self) -> int:
        return len(self.inputs)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        return {"x": self.inputs[index], "y": self.outputs[index]}


class Timed(IncrementalFNOTrainer):
    """The peer's trainer with a clock of processor seconds that runs during training epochs only."""

    def __init__(self, *args, test: Pairs, **options) -> None:
        super().__init__(*args, **options)
        self.test, self.seconds, self.curve = test, 0.0, []

    def train_one_epoch(self, epoch, train_loader, training_loss):
        """One epoch of the peer, then the test error."""
        start = time.process_time()
        result = super().train_one_epoch(epoch, train_loader, training_loss)
        self.seconds += time.process_time() - start
        self.model.eval()
        with torch.no_grad():
            difference = self.model(self.test.inputs) - self.test.outputs
        self.model.train()
        error = difference.flatten(1).norm(dim=1) / self.test.outputs.flatten(1).norm(dim=1)
        self.curve.append([self.seconds, float(error.mean())])
        return result


def main() -> None:
    """Train once and print the curve as JSON on the last line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", required=True)
    parser.add_argument("--seed", type=int, required=True)
    parser.add_argument("--epochs", type=int, default=20)
    given = parser.parse_args()
    torch.manual_seed(given.seed)
    arrays = np.load(given.data)
    train = Pairs(arrays["train_x"], arrays["train_y"])
    test = Pairs(arrays["test_x"], arrays["test_y"])
    resolution = arrays["train_x"].shape[-1]
    model = FNO(
        max_n_modes=(8, 8), n_modes=(2, 2), hidden_channels=32, in_channels=1, out_channels=1
    )
    optimizer = AdamW(model.parameters(), lr=8e-3, weight_decay=1e-4)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=30)
    processor = IncrementalDataProcessor(
        in_normalizer=None,
        out_normalizer=None,
        device="cpu",
        subsampling_rates=[2, 1],
        dataset_resolution=resolution,
        dataset_indices=[2, 3],
        epoch_gap=10,
        verbose=False,
    ).to("cpu")
    trainer = Timed(
        model=model,
        n_epochs=given.epochs,
        data_processor=processor,
        device="cpu",
        incremental_loss_gap=False,
        incremental_grad=True,
        incremental_grad_eps=0.9999,
        incremental_loss_eps=0.001,
        incremental_buffer=5,
        incremental_max_iter=1,
        incremental_grad_max_iter=2,
        test=test,
    )
    trainer.train(
        DataLoader(train, batch_size=16, shuffle=True),
        {resolution: DataLoader(test, batch_size=32)},
        optimizer,
        scheduler,
        regularizer=False,
        training_loss=H1Loss(d=2),
        eval_losses={"l2": LpLoss(d=2, p=2)},
    )
    print(
        json.dumps(
            {
                "curve": trainer.curve,
                "parameters": count_model_params(model),
                "torch": torch.__version__,
                "threads": torch.get_num_threads(),
            }
        )
    )


if __name__ == "__main__":
    main()
