"""
``progress.csv`` in the folder of a run: the log of every update, whether or not there is a TensorBoard.
"""

from pathlib import Path

from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.logger import CSVOutputFormat, Logger

PROGRESS = "progress.csv"


class ProgressLog(BaseCallback):
    """
    Writes SB3's log to ``progress.csv``, beside where it goes anyway.

    A file that is there already, of a run that goes on, stays under another name.

    :param folder: the folder of the run
    """

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.path = folder / PROGRESS

    def _on_training_start(self) -> None:
        keep_file(self.path)
        self.logger.output_formats.append(ProgressFormat(str(self.path)))

    def _on_step(self) -> bool:
        return True

    def _on_training_end(self) -> None:
        # SB3 writes an update's numbers after the next rollout, so that those of the last one are still there.
        for output in list(self.logger.output_formats):
            if isinstance(output, ProgressFormat):
                output.finish(self.logger, self.num_timesteps)
                self.logger.output_formats.remove(output)


class ProgressFormat(CSVOutputFormat):
    """The format of ``progress.csv``; a class of its own, by which a logger's own file is told from the user's."""

    def finish(self, logger: Logger, num_timesteps: int) -> None:
        """
        Write what is left in the logger, which keeps it, and close the file.

        :param logger: the logger
        :param num_timesteps: the number of steps so far
        """
        left = dict(logger.name_to_value)
        if any(key.startswith("train/") for key in left):
            self.write({**left, "time/total_timesteps": num_timesteps}, dict(logger.name_to_excluded), num_timesteps)
        self.close()


def keep_file(path: Path) -> None:
    """
    Rename a file that would be begun anew, if it is there.

    Readers still find it, by its ending.

    :param path: its path, whose name becomes ``until_N.`` and the name
    """
    if path.exists():
        n = 1
        while path.with_name(f"until_{n}.{path.name}").exists():
            n += 1
        path.rename(path.with_name(f"until_{n}.{path.name}"))
