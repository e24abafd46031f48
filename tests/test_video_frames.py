"""Text, strips and grids of frames."""

from pathlib import Path
from typing import Any

import imageio.v2 as imageio
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sb3_pwm.video import frame_strip, grid_video
from sb3_pwm.video.frames import BACKGROUND, VideoWriter, _tiles, beside, font_size, overlay, read_video


def write(path: Path, greys: list[int], fps: float = 10, size: tuple[int, int] = (40, 60)) -> Path:
    with VideoWriter(path, fps) as writer:
        for grey in greys:
            writer.append(np.full((*size, 3), grey, np.uint8))
    return path


def test_overlay_is_readable_and_leaves_the_rest() -> None:
    frame = np.full((240, 240, 3), 200, np.uint8)
    text = overlay(frame, "return 12.3", "step 4")
    assert frame.min() == 200
    assert text.max() > 240
    assert text.min() < 100  # the dark ground under the letters
    rows, columns = np.nonzero((text != 200).any(-1))
    assert rows.max() < 60
    assert columns.max() < 120
    assert (overlay(frame, "return 12.4", "step 4") != text).any()


def test_beside_has_a_line_in_between() -> None:
    left, right = (np.full((4, 3, 3), grey, np.uint8) for grey in (100, 200))
    row = beside(left, right)[0, :, 0]
    assert row.tolist() == [100] * 3 + [BACKGROUND[0]] * 2 + [200] * 3


def test_strip_of_evenly_spaced_frames(tmp_path: Path) -> None:
    frames = [np.full((20, 40, 3), 10 * i, np.uint8) for i in range(11)]
    frame_strip(iter(frames), tmp_path / "new" / "strip.png", 3, width=20)
    strip = np.asarray(imageio.imread(tmp_path / "new" / "strip.png"))[..., :3]
    assert strip.shape == (10, 60, 3)
    assert [int(strip[5, x, 0]) for x in (10, 30, 50)] == [0, 50, 100]


def test_strip_of_a_video_in_rows(tmp_path: Path) -> None:
    video = write(tmp_path / "v.mp4", [20, 60, 100])
    frame_strip(video, tmp_path / "strip.png", 8, columns=2, width=30)  # only three frames
    strip = np.asarray(imageio.imread(tmp_path / "strip.png"))[..., :3]
    assert strip.shape == (40, 60, 3)
    corners = [strip[y, x, 0] for y, x in ((10, 15), (10, 45), (30, 15), (30, 45))]
    np.testing.assert_allclose(corners, [20, 60, 100, BACKGROUND[0]], atol=3)


@given(st.integers(1, 7), st.integers(1, 7))
def test_tiles_are_read_like_a_page(n_frames: int, columns: int) -> None:
    tiles = _tiles([np.full((2, 3, 3), 100 + i, np.uint8) for i in range(n_frames)], columns)
    rows = -(-n_frames // columns)
    assert tiles.shape == (2 * rows, 3 * columns, 3)
    values = tiles[::2, ::3, 0].ravel().tolist()
    assert values == [*range(100, 100 + n_frames), *[BACKGROUND[0]] * (rows * columns - n_frames)]


def test_a_thousand_frames_per_second(tmp_path: Path) -> None:
    for count in (4, 100):
        fast = write(tmp_path / "fast.mp4", [20, 60, 100, 140] * (count // 4), 1_000)
        assert read_video(fast)[0] == pytest.approx(1_000)
    grid_video([fast, fast], tmp_path / "grid.mp4")


def test_a_gif_that_stands_still_keeps_its_time(tmp_path: Path) -> None:
    """Equal frames in a row are written as one frame of a longer duration."""
    greys = [40] * 5 + [80, 120, 120, 160]
    still, film = write(tmp_path / "still.gif", greys, 20), write(tmp_path / "still.mp4", greys, 20)
    for video in (still, film):
        fps, frames = read_video(video)
        np.testing.assert_allclose([frame[0, 0, 0] for frame in frames], greys, atol=3)
        assert fps == 20
    grid_video([still, film], tmp_path / "grid.mp4")
    assert len(list(read_video(tmp_path / "grid.mp4")[1])) == len(greys)


def test_a_gif_that_never_moves(tmp_path: Path) -> None:
    fps, frames = read_video(write(tmp_path / "still.gif", [40] * 20, 20))
    assert len(list(frames)) / fps == pytest.approx(1)


def test_grid_names_videos_and_holds_the_last_frame(tmp_path: Path) -> None:
    long = write(tmp_path / "long.mp4", [40, 80, 120, 160])
    short = write(tmp_path / "short.gif", [200, 240])
    grid_video([long, ("a name", short)], tmp_path / "new" / "grid.mp4")
    fps, read = read_video(tmp_path / "new" / "grid.mp4")
    frames = list(read)
    bar = 2 * font_size(40)
    assert fps == 10
    assert frames[0].shape == (40 + bar, 120, 3)
    np.testing.assert_allclose([frame[bar + 20, 30, 0] for frame in frames], [40, 80, 120, 160], atol=3)
    np.testing.assert_allclose([frame[bar + 20, 90, 0] for frame in frames], [200, 240, 240, 240], atol=3)
    for column in (slice(0, 60), slice(60, 120)):
        assert frames[0][:bar, column].max() > 150  # white letters


def test_grid_plays_all_videos_at_their_own_speed(tmp_path: Path) -> None:
    slow, fast = write(tmp_path / "slow.mp4", [0, 100], fps=5), write(tmp_path / "fast.mp4", [0, 60, 120, 180], fps=10)
    grid_video([slow, fast], tmp_path / "grid.mp4", columns=1)
    bar, frames = 2 * font_size(40), list(read_video(tmp_path / "grid.mp4")[1])
    assert frames[0].shape == (2 * (40 + bar), 60, 3)
    np.testing.assert_allclose([frame[bar + 20, 30, 0] for frame in frames], [0, 0, 100, 100], atol=3)
    np.testing.assert_allclose([frame[-20, 30, 0] for frame in frames], [0, 60, 120, 180], atol=3)


def test_smaller_videos_stand_in_the_middle(tmp_path: Path) -> None:
    large, small = write(tmp_path / "large.mp4", [100]), write(tmp_path / "small.mp4", [100], size=(20, 30))
    grid_video([large, small], tmp_path / "grid.mp4")
    [frame] = read_video(tmp_path / "grid.mp4")[1]
    cell = frame[2 * font_size(40) :, 60:, 0]
    assert cell[10:30, 15:45].mean() == pytest.approx(100, abs=5)
    assert cell[:8].mean() == pytest.approx(BACKGROUND[0], abs=5)


def test_bad_input(tmp_path: Path) -> None:
    video, broken = write(tmp_path / "v.mp4", [0]), tmp_path / "broken.mp4"
    broken.write_bytes(b"no video")
    before = sorted(tmp_path.iterdir())
    arguments: Any
    for arguments, error, message in (
        (([], "g.mp4"), ValueError, "must be a sequence of at least one"),
        (("v.mp4", "g.mp4"), ValueError, "must be a sequence of at least one"),
        (([video], "g.png"), ValueError, r"must end in \.mp4 or \.gif"),
        (([video], "g.mp4", 0), ValueError, "columns=0 is out of range"),
        ((["missing.mp4"], "g.mp4"), FileNotFoundError, r"no video missing\.mp4"),
        (([broken], "g.mp4"), ValueError, r"broken\.mp4 cannot be read as a video"),
    ):
        with pytest.raises(error, match=message):
            grid_video(arguments[0], tmp_path / arguments[1], *arguments[2:])
    for arguments, message in (
        ((video, "s.jpg"), r"must end in \.png"),
        (([], "s.png"), "source has no frames"),
        ((video, "s.png", 0), "n=0 is out of range"),
    ):
        with pytest.raises(ValueError, match=message):
            frame_strip(arguments[0], tmp_path / arguments[1], *arguments[2:])
    with pytest.raises(ValueError, match="columns=0 is out of range"):
        frame_strip(video, tmp_path / "s.png", columns=0)
    assert sorted(tmp_path.iterdir()) == before
