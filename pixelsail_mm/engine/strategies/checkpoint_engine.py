"""DeepSpeed's way to files, led into our checkpoints."""

from deepspeed.runtime.checkpoint_engine.torch_checkpoint_engine import TorchCheckpointEngine

from pixelsail_mm.engine.checkpoint_writer import CheckpointSave


class SaveEngine(TorchCheckpointEngine):
    """Give every file that DeepSpeed would write to a :class:`CheckpointSave`; read as DeepSpeed.

    Errors stay in the save, because DeepSpeed's processes wait for each other behind each file.

    Attributes:
        target: The save that is being filled.
    """

    target: CheckpointSave

    def makedirs(self, path: str, exist_ok: bool = False) -> None:
        """Make a folder of the checkpoint."""
        with self.target.noting_errors():
            super().makedirs(path, exist_ok=exist_ok)

    def save(self, state_dict: dict, path: str) -> None:
        """Take over one file."""
        self.target.add(state_dict, path)
