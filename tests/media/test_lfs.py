import pytest

from mmattn.config import ExtractConfig
from mmattn.media.decode import read_frames
from mmattn.media.extract import extract_clip
from mmattn.media.sound import read_audio
from mmattn.media.survey import BadMedia

POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:{}\nsize 1048576\n".format(
    "a" * 64
)


@pytest.mark.parametrize("name", ["1001_DFA_ANG_XX.flv", "a.wav", "a.mp4"])
def test_a_pointer_is_named_as_such(name, tmp_path):
    path = tmp_path / name
    path.write_text(POINTER)
    for read in (
        read_audio,
        lambda path: list(read_frames(path, 15)),
        lambda path: extract_clip(path, ExtractConfig(video={})),
    ):
        with pytest.raises(BadMedia, match=r"git-lfs pointer.*git lfs pull"):
            read(path)


def test_other_text_is_no_pointer(tmp_path):
    path = tmp_path / "a.mp4"
    path.write_text("version 2\n" + POINTER)
    with pytest.raises(BadMedia, match="no audio or video can be read"):
        read_audio(path)
