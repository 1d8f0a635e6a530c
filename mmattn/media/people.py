"""Assigns the faces of successive frames to people."""

from collections.abc import Sequence

import numpy as np

from mmattn.media.faces import FORGOTTEN, overlap


class People:
    """Numbers the people in one frame after another, from 0 in order of appearance.

    Faces whose boxes overlap from one frame to the next are the same person. After `forgotten`
    frames without a person, a face in the same place is a new one.
    """

    def __init__(self, forgotten: int = FORGOTTEN):
        self._forgotten, self._frame, self._count = forgotten, 0, 0
        self._known: dict[int, tuple[int, np.ndarray]] = {}  # frame and box when last seen

    def __call__(self, boxes: Sequence[np.ndarray]) -> list[int]:
        """The number of each face in the next frame, by their boxes [4]."""
        for who, (frame, _) in list(self._known.items()):
            if self._frame - frame > self._forgotten:
                del self._known[who]
        pairs = sorted(
            (-overlap(last, box), who, place)
            for who, (_, last) in self._known.items()
            for place, box in enumerate(boxes)
        )
        found: dict[int, int] = {}  # by place
        for nearness, who, place in pairs:
            if nearness < 0 and place not in found and who not in found.values():
                found[place] = who
        for place in range(len(boxes)):
            if place not in found:
                found[place], self._count = self._count, self._count + 1
            self._known[found[place]] = self._frame, boxes[place]
        self._frame += 1
        return [found[place] for place in range(len(boxes))]
