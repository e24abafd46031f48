"""Video files, text on their frames, and pictures and grids made of them."""

import contextlib
import io
import math
import pathlib
import shutil
from collections.abc import Iterable, Iterator, Sequence
from types import TracebackType
from typing import Any, Self

import imageio.v2 as imageio
import imageio_ffmpeg
import numpy as np
from PIL import Image, ImageDraw, ImageFont, ImageSequence

from sb3_pwm.checks import check_integer
from sb3_pwm.files.atomic import whole_file, write_bytes

SUFFIXES = (".mp4", ".gif")
PAGE_SUFFIX = ".html"
MAX_GIF_FPS = 25  # browsers slow down what is much faster, and files grow
STRIP_COLORS = 128
BACKGROUND = (24, 24, 24)

Path = str | pathlib.Path


def check_video_path(path: Path) -> pathlib.Path:
    """Check that a path names a kind of video that can be written, and return it with ``~`` expanded.

    :raises ValueError: if it does not end in ``.mp4`` or ``.gif``.
    """
    path = pathlib.Path(path).expanduser()
    if path.suffix not in SUFFIXES:
        raise ValueError(f"path={str(path)!r} must end in {' or '.join(SUFFIXES)}")
    return path


def check_page_path(path: Path) -> pathlib.Path:
    """Check that a path names a page, and return it with ``~`` expanded.

    :raises ValueError: if it does not end in ``.html``.
    """
    path = pathlib.Path(path).expanduser()
    if path.suffix != PAGE_SUFFIX:
        raise ValueError(f"path={str(path)!r} must end in {PAGE_SUFFIX}")
    return path


class VideoWriter:
    """Context in which frames become a video file, which appears only when it is whole.

    A gif keeps only every k-th frame where ``fps`` is above 25; its speed stays. Its frames are in memory until it is
    whole.

    :param path: file that ends in ``.mp4`` or ``.gif``; its folder is created.
    :param fps: frames per second, above 0.
    :raises ValueError: if the path ends in something else.
    """

    def __init__(self, path: Path, fps: float) -> None:
        self.path = check_video_path(path)
        self.every = max(1, math.ceil(fps / MAX_GIF_FPS)) if self.path.suffix == ".gif" else 1
        self.fps = fps / self.every
        self.n_frames = 0
        self._shape: tuple[int, ...] | None = None
        self._writer: Any = None
        self._file = contextlib.ExitStack()

    def append(self, frame: np.ndarray) -> None:
        """Add a (height, width, 3) uint8 frame.

        :raises ValueError: if it has not the size of the first one.
        """
        self._shape = self._shape or frame.shape
        if frame.shape != self._shape:
            raise ValueError(
                f"frame {self.n_frames} of {self.path} has the shape {frame.shape}; allowed: {self._shape}, as before"
            )
        if self.n_frames % self.every == 0:
            if self._writer is None:
                self._writer = self._file.enter_context(self._opened())
            self._writer.append_data(_even(frame))
        self.n_frames += 1

    @contextlib.contextmanager
    def _opened(self) -> Iterator[Any]:
        with whole_file(self.path, self.path.suffix) as part:
            if self.path.suffix == ".gif":
                writer = imageio.get_writer(part, mode="I", duration=10 * round(100 / self.fps), loop=0)
            else:  # blocks of 2 pixels: H.264 needs no more
                writer = imageio.get_writer(part, fps=self.fps, macro_block_size=2)
            try:
                yield writer
            finally:
                writer.close()
            if self.path.suffix == ".mp4":
                check_encoded(part, self.n_frames, self.path)

    def __enter__(self) -> Self:
        """Return the writer; the file is opened with the first frame."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Finish the file and put it in place, or remove it after an error.

        :raises OSError: if it could not be written, for example because the disk is full.
        """
        self._file.__exit__(kind, error, traceback)


def check_encoded(part: pathlib.Path, n_frames: int, path: pathlib.Path) -> None:
    """Check that an mp4 holds what was sent to the encoder, a process whose failure nobody reports.

    :raises OSError: if it does not.
    """
    try:
        found = int(imageio_ffmpeg.count_frames_and_secs(str(part))[0])
    except (RuntimeError, OSError):
        found = 0
    if found != n_frames:
        room = shutil.disk_usage(part.parent).free / 1e6
        raise OSError(
            f"the encoder has not finished {path}: {found} of {n_frames} frames were written; {room:,.0f} MB are free "
            "on that disk"
        )


def _even(frame: np.ndarray) -> np.ndarray:
    """Repeat the last row or column where a side is odd, which H.264 does not have."""
    height, width = frame.shape[:2]
    return np.pad(frame, ((0, height % 2), (0, width % 2), (0, 0)), "edge") if height % 2 or width % 2 else frame


def font_size(height: int) -> int:
    """Return the size in pixels of text on a picture that is ``height`` pixels high."""
    return max(10, height // 22)


def overlay(frame: np.ndarray, *lines: str) -> np.ndarray:
    """Write lines of text into the upper left corner.

    :param frame: (height, width, 3) uint8; is not changed.
    :param lines: the text.
    :return: a new frame of the same size.
    """
    image = Image.fromarray(frame)
    draw = ImageDraw.Draw(image, "RGBA")
    size = font_size(image.height)
    font, margin, text = ImageFont.load_default(size), size // 2, "\n".join(lines)
    _, _, right, bottom = draw.textbbox((margin, margin), text, font=font)
    draw.rectangle((0, 0, right + margin, bottom + margin), fill=(0, 0, 0, 170))
    draw.text((margin, margin), text, font=font, fill="white")
    return np.asarray(image)


def beside(*frames: np.ndarray) -> np.ndarray:
    """Put frames of the same height side by side, with a thin line between them."""
    line = np.full((len(frames[0]), 2, 3), BACKGROUND, np.uint8)
    return np.concatenate([part for frame in frames for part in (line, frame)][1:], 1)


def read_video(path: Path) -> tuple[float, Iterator[np.ndarray]]:
    """Open a video.

    :param path: mp4 or gif file.
    :return: frames per second, and an iterator over (height, width, 3) uint8 frames.
    :raises FileNotFoundError: if there is no such file.
    :raises ValueError: if it does not end in ``.mp4`` or ``.gif``, or holds no video.
    """
    path = check_video_path(path)
    if not path.is_file():
        raise FileNotFoundError(f"there is no video {path}")
    try:
        if path.suffix == ".gif":
            return _read_gif(path)
        with imageio.get_reader(path) as reader:
            facts = reader.get_meta_data()  # type: ignore[attr-defined]
            fps, seconds = float(facts["fps"]), float(facts["duration"])
            if fps == 0 and seconds > 0:  # ffmpeg says "1k fps" for a thousand, of which imageio reads no number
                fps = reader.count_frames() / seconds  # type: ignore[attr-defined]
    except Exception as error:  # each format has its own
        raise ValueError(f"{path} cannot be read as a video ({type(error).__name__}: {error})") from error
    return fps or 1_000.0, _frames(path)


def _frames(path: pathlib.Path) -> Iterator[np.ndarray]:
    with imageio.get_reader(path) as reader:
        for frame in reader:  # type: ignore[attr-defined]
            yield np.asarray(frame)[..., :3]


def _read_gif(path: pathlib.Path) -> tuple[float, Iterator[np.ndarray]]:
    """Open a gif, whose frames have durations: equal frames in a row are written as one that lasts longer."""
    with Image.open(path) as image:
        milliseconds = [max(10, int(frame.info.get("duration", 0))) for frame in ImageSequence.Iterator(image)]
    unit = math.gcd(*milliseconds)

    def frames() -> Iterator[np.ndarray]:
        with Image.open(path) as image:
            for frame, duration in zip(ImageSequence.Iterator(image), milliseconds, strict=True):
                yield from [np.asarray(frame.convert("RGB"))] * (duration // unit)

    return 1_000 / unit, frames()


def frame_strip(
    source: Path | Iterable[np.ndarray], path: Path, n: int = 8, *, columns: int | None = None, width: int = 320
) -> None:
    """Write a picture of ``n`` frames, evenly spaced from the first to the last.

    :param source: video, or (height, width, 3) uint8 frames of one size.
    :param path: file that ends in ``.png``; its folder is created.
    :param n: number of frames; all of them if there are fewer.
    :param columns: frames in a row; None for one row.
    :param width: pixels to which each frame is scaled.
    :raises ValueError: if a number is below 1, ``source`` has no frames or ``path`` ends in something else.
    """
    path = pathlib.Path(path).expanduser()
    if path.suffix != ".png":
        raise ValueError(f"path={str(path)!r} must end in .png")
    for name, value in (("n", n), ("columns", n if columns is None else columns), ("width", width)):
        check_integer(name, value, 1)
    frames: Iterable[np.ndarray]
    if isinstance(source, str | pathlib.Path):  # read twice: a long video may not fit into memory
        n_frames, frames = sum(1 for _ in read_video(source)[1]), read_video(source)[1]
    else:
        frames = list(source)
        n_frames = len(frames)
    if not n_frames:
        raise ValueError("source has no frames")
    places = set(np.linspace(0, n_frames - 1, min(n, n_frames)).round().astype(int))
    chosen = [frame for place, frame in enumerate(frames) if place in places]
    height = round(width * chosen[0].shape[0] / chosen[0].shape[1])
    scaled = [Image.fromarray(frame).resize((width, height)) for frame in chosen]
    image = Image.fromarray(_tiles([np.asarray(part) for part in scaled], columns or len(scaled)))
    file = io.BytesIO()
    image.quantize(STRIP_COLORS).save(file, "png", optimize=True)  # a third of the size
    write_bytes(path, file.getvalue())


def _tiles(frames: Sequence[np.ndarray], columns: int) -> np.ndarray:
    """Lay out frames of one size row by row; places without a frame are dark."""
    empty = np.full_like(frames[0], BACKGROUND)
    filled = [*frames, *[empty] * (-len(frames) % columns)]
    rows = [np.concatenate(filled[i : i + columns], 1) for i in range(0, len(filled), columns)]
    return np.concatenate(rows)


def grid_video(videos: Sequence[Path | tuple[str, Path]], path: Path, columns: int | None = None) -> None:
    """Show videos at the same time, for example several algorithms; shorter ones hold their last frame.

    :param videos: paths, or pairs of a name and a path; without a name the file's name stands above the video.
    :param path: file that ends in ``.mp4`` or ``.gif``; its folder is created.
    :param columns: videos in a row; None for as many columns as rows, or one more.
    :raises FileNotFoundError: if a video is missing.
    :raises ValueError: if there are no videos, one cannot be read, ``columns`` is below 1 or ``path`` ends in something
        else.
    """
    path, named = check_video_path(path), _named(videos)
    columns = math.ceil(math.sqrt(len(named))) if columns is None else columns
    check_integer("columns", columns, 1)
    _write([named], path, columns)


def timeline_video(videos: Sequence[Path | tuple[str, Path]], path: Path) -> None:
    """Show videos one after the other, for example of a policy after more and more steps.

    :param videos: paths, or pairs of a name and a path; without a name the file's name stands above the video.
    :param path: file that ends in ``.mp4`` or ``.gif``; its folder is created.
    :raises FileNotFoundError: if a video is missing.
    :raises ValueError: if there are no videos, one cannot be read, or ``path`` ends in something else.
    """
    path = check_video_path(path)
    _write([[each] for each in _named(videos)], path, columns=1)


def _named(videos: Sequence[Path | tuple[str, Path]]) -> list[tuple[str, Path]]:
    if isinstance(videos, str | pathlib.Path) or not videos:
        raise ValueError(f"videos={videos!r} must be a sequence of at least one path or pair of a name and a path")
    return [
        (video[0], video[1]) if isinstance(video, tuple | list) else (pathlib.Path(video).stem, video)
        for video in videos
    ]


def _write(scenes: Sequence[Sequence[tuple[str, Path]]], path: pathlib.Path, columns: int) -> None:
    """Write scenes one after the other, each a grid of videos at the same time."""
    opened = [[(name, _HoldingSource(*read_video(file))) for name, file in scene] for scene in scenes]
    sources = [source for scene in opened for _, source in scene]
    height, width = (max(source.frame.shape[axis] for source in sources) for axis in (0, 1))
    fps = max(source.fps for source in sources)
    with VideoWriter(path, fps) as writer:
        for scene in opened:
            for frame in _grid([(_title(name, width, height), source) for name, source in scene], height, fps, columns):
                writer.append(frame)


def _grid(
    cells: Sequence[tuple[np.ndarray, "_HoldingSource"]], height: int, fps: float, columns: int
) -> Iterator[np.ndarray]:
    """Give frames of pairs of a title and a video, until all videos have ended."""
    time = 0
    while True:
        shown = [_cell(title, source.frame, height) for title, source in cells]
        yield _tiles(shown, min(columns, len(cells)))
        time += 1
        for _, source in cells:
            source.advance(time / fps)
        if all(source.ended for _, source in cells):
            return


class _HoldingSource:
    """Frames of a video by time; behind its end the last one."""

    def __init__(self, fps: float, frames: Iterator[np.ndarray]) -> None:
        self.fps, self.frames = fps, frames
        self.frame, self.shown, self.ended = next(frames), 0, False

    def advance(self, seconds: float) -> None:
        while not self.ended and self.shown < math.floor(seconds * self.fps + 1e-6):
            following = next(self.frames, None)
            self.ended = following is None
            self.frame = self.frame if following is None else following
            self.shown += 1


def _title(name: str, width: int, height: int) -> np.ndarray:
    """Return a bar of ``width`` pixels with a name in its middle."""
    size = font_size(height)
    image = Image.new("RGB", (width, 2 * size), BACKGROUND)
    ImageDraw.Draw(image).text((width / 2, size), name, "white", ImageFont.load_default(size), anchor="mm")
    return np.asarray(image)


def _cell(title: np.ndarray, frame: np.ndarray, height: int) -> np.ndarray:
    """Put a title above a frame, which is centred on a dark ground."""
    cell = np.full((height + len(title), title.shape[1], 3), BACKGROUND, np.uint8)
    cell[: len(title)] = title
    top = len(title) + (height - frame.shape[0]) // 2
    left = (title.shape[1] - frame.shape[1]) // 2
    cell[top : top + frame.shape[0], left : left + frame.shape[1]] = frame
    return cell
