"""Whether frame scores show what the model used, and what a fusion adds to an additive model."""

from collections.abc import Callable, Mapping, Sequence

import numpy as np

FrameScores = Mapping[str, np.ndarray]  # modality to [T], one number per frame
FrameMask = Mapping[str, np.ndarray]  # modality to [T] bool


def removed(scores: np.ndarray, valid: np.ndarray, share: float) -> np.ndarray:
    """[T] bool: the highest-scoring fraction `share` of the valid [T] frames, by scores [T].

    The count is rounded; among equal scores, earlier frames come first.
    """
    order = np.argsort(np.where(valid, -scores, np.inf), kind="stable")
    mask = np.zeros(len(scores), bool)
    mask[order[: round(share * np.count_nonzero(valid))]] = True
    return mask


def deletion_and_insertion(
    clips_scores: Sequence[FrameScores],
    clips_valid: Sequence[FrameMask],
    probability_of: Callable[[Sequence[FrameMask]], np.ndarray],
    shares: np.ndarray,
) -> tuple[np.ndarray, np.ndarray]:
    """Areas under the deletion and insertion curves of n clips, [n] each (Petsiuk et al. 2018).

    `probability_of` gives the probability [n] of each clip's class with the frames of its mask
    deleted. Deletion removes the highest-scoring frames first: a low area is good. Insertion starts
    with all valid frames deleted and restores the highest-scoring first: a high area is good.
    `shares`, ascending from 0 to 1, are the fractions removed from every modality.
    """
    deletion, insertion = [], []
    for share in shares:
        top = [
            {name: removed(scores[name], valid[name], share) for name in scores}
            for scores, valid in zip(clips_scores, clips_valid, strict=True)
        ]
        rest = [
            {name: valid[name] & ~mask[name] for name in mask}
            for mask, valid in zip(top, clips_valid, strict=True)
        ]
        deletion.append(probability_of(top))
        insertion.append(probability_of(rest))
    return np.trapezoid(deletion, shares, axis=0), np.trapezoid(insertion, shares, axis=0)


def emap(logits: np.ndarray) -> np.ndarray:
    """Logits [N, K] of the additive model nearest to a fusion's, for each of N clips.

    `logits` [N, N, K] at [i, j] are those of the audio of clip i with the video of clip j. The
    empirical multimodally-additive projection of Hessel & Lee (EMNLP 2020): mean over the videos
    plus mean over the audios minus the overall mean, at [i, i].
    """
    return logits.mean(axis=1) + logits.mean(axis=0) - logits.mean(axis=(0, 1))
