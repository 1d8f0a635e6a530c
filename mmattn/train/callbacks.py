"""What watches a training: objects that `fit` calls as epochs end."""


class Callback:
    """The calls that a training makes; none of them does anything unless it is overridden.

    Process 0 alone makes them, after the epoch's row and checkpoints are written. A callback has no
    state in checkpoints: it finds what it needs in `run.history`. It may call `run.stop()`, which
    ends the training after this epoch; what it raises ends the training.

    Each gets `run`, which has:
        name: str, such as "no_aug/20260101-120000/fold0".
        folder: Path, or None where nothing is written.
        config: ExperimentConfig.
        class_names: the classes in order.
        history: the rows of metrics.jsonl, a dict an epoch.
        status: "running", "complete", "stopped" or "failed".
        predictions: by split, those of the best checkpoint once the training is complete.
        stop(): ends the training after this epoch.
    """

    def on_train_begin(self, run) -> None:
        """Before the first epoch; after a resume, `run.history` is not empty."""

    def on_epoch_end(self, run, row: dict[str, float]) -> None:
        """After an epoch, with its row, the last of `run.history`."""

    def on_train_end(self, run) -> None:
        """At the end, also after an error or a stop: `run.status` tells."""
