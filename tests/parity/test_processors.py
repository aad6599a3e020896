"""Real processors: pictures, videos and prompts as transformers prepares them, to the last grey level and id."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx_vlm.export  # noqa: F401 (makes torchvision importable, which transformers imports)
import pytest
from onnx_vlm.export.checkpoint.checkpoint import Checkpoint
from onnx_vlm.export.families import registry as family
from onnx_vlm.export.families.registry import Behaviour
from onnx_vlm.graphs import CheckpointError
from onnx_vlm.graphs.manifest import Resize, Tiles, Video
from onnx_vlm.runtime.grounding import patches as entities
from onnx_vlm.runtime.images import reading as image
from onnx_vlm.runtime.images import video
from onnx_vlm.runtime.text.prompt import Prompts
from PIL import Image
from transformers import AutoProcessor
from transformers.video_utils import load_video

LLAMA = {"model_type": "llama", "vocab_size": 128256, "hidden_size": 2048, "num_hidden_layers": 16}
CONFIGS: dict[str, dict[str, Any]] = {
    "paligemma-3b-224": {
        "model_type": "paligemma", "image_token_index": 257152,
        "text_config": {"model_type": "gemma", "vocab_size": 257216, "hidden_size": 2048},
        "vision_config": {"model_type": "siglip_vision_model", "image_size": 224, "patch_size": 14},
    },
    "perception-lm-1b": {
        "model_type": "perception_lm", "projector_pooling_ratio": 2, "vision_use_cls_token": True,
        "text_config": LLAMA,
        "vision_config": {"model_type": "timm_wrapper", "architecture": "vit_pe_lang_large_patch14_448"},
    },
    "kosmos-2-patch14-224": {"model_type": "kosmos-2"},
}  # fmt: skip
PALIGEMMA, PERCEPTION_LM, KOSMOS2 = CONFIGS
TILE_TOKENS = {PALIGEMMA: 256, PERCEPTION_LM: 256, KOSMOS2: 64}


class Real:
    """A folder with real processor files, in our hands and in those of transformers."""

    def __init__(self, name: str, files: Path, folder: Path) -> None:
        self.name, self.folder = name, folder
        for path in files.iterdir():
            (folder / path.name).write_bytes(path.read_bytes())
        (folder / "config.json").write_text(json.dumps(CONFIGS[name]))
        (folder / "model.safetensors").touch()

    @property
    def behaviour(self) -> Behaviour:
        checkpoint = Checkpoint(self.folder)
        return family.find(checkpoint.config["model_type"]).behaviour(checkpoint)

    @property
    def processor(self) -> Any:
        return AutoProcessor.from_pretrained(self.folder)

    def edit(self, change: Callable[[dict[str, Any]], object]) -> None:
        path = self.folder / "processor_config.json"
        settings = json.loads(path.read_text())
        change(settings)
        path.write_text(json.dumps(settings))


@pytest.fixture
def real(assets: Path, tmp_path: Path) -> Callable[[str], Real]:
    return lambda name: Real(name, assets / "processors" / name, tmp_path)


def assert_same_pixels(ours: np.ndarray, theirs: np.ndarray, recipe: Resize | Tiles) -> None:
    """Every grey level the same; the values then differ by the rounding of one float32 operation."""
    std = np.asarray(recipe.pixels.std)[:, None, None]
    levels = np.abs(ours.astype(np.float64) - theirs) * std / recipe.pixels.rescale_factor
    assert ours.shape == theirs.shape
    assert levels.max() < 1e-3, f"{levels.max():.3f} grey levels apart"


def noise(width: int, height: int, mode: str = "RGB") -> Image.Image:
    values = np.random.default_rng([width, height]).integers(0, 256, (height, width, 4), np.uint8)
    picture = Image.fromarray(values)
    if mode == "I;16":
        return Image.fromarray(values[..., 0].astype(np.uint16) * 257)
    if mode == "P, transparent":
        picture = picture.convert("RGB").convert("P", palette=Image.Palette.ADAPTIVE)
        picture.info["transparency"] = picture.getpixel((0, 0))
        return picture
    return picture.convert("RGB").convert(mode) if mode not in ("RGBA", "LA") else picture.convert(mode)


SIZES = [
    (1, 1), (1, 50), (50, 1), (2, 3), (37, 53), (223, 225), (224, 224), (448, 447), (640, 480), (481, 1283),
    (4000, 80), (80, 4000), (4000, 3000), (1000, 3000),
]  # fmt: skip
MODES = ["1", "L", "LA", "P", "P, transparent", "RGBA", "CMYK", "YCbCr", "HSV", "I;16", "I", "F"]


@pytest.mark.parametrize("name", list(CONFIGS))
def test_pictures_of_every_size_and_mode(real: Callable[[str], Real], assets: Path, name: str):
    one = real(name)
    recipe, processor = one.behaviour.image, one.processor.image_processor
    pictures = [noise(*size) for size in SIZES] + [noise(61, 47, mode) for mode in MODES]
    pictures += [Image.open(path) for path in sorted((assets / "images").iterdir()) if path.suffix in (".png", ".jpg")]
    for picture in pictures:
        theirs = np.asarray(processor(picture, return_tensors="np")["pixel_values"][0])
        ours = image.tiles(image.read(picture), recipe)
        assert_same_pixels(ours, theirs if theirs.ndim == 4 else theirs[None], recipe)


def test_files_are_turned_upright_as_transformers_loads_them(real: Callable[[str], Real], tmp_path: Path):
    from transformers.image_utils import load_image

    processor, recipe = real(KOSMOS2).processor.image_processor, real(KOSMOS2).behaviour.image
    for orientation in range(1, 9):
        exif = Image.Exif()
        exif[0x0112] = orientation
        path = tmp_path / f"{orientation}.png"
        noise(31, 57).save(path, exif=exif)
        theirs = processor(load_image(str(path)), return_tensors="np")["pixel_values"]
        assert_same_pixels(image.tiles(image.read(path), recipe), theirs, recipe)


def test_published_pixels(real: Callable[[str], Real], assets: Path):
    published = json.loads((assets / "expected" / "summary.json").read_text())["kosmos2"]
    tiles = image.tiles(image.read(assets / "images" / "two_dogs.resaved.jpg"), real(KOSMOS2).behaviour.image)
    assert np.allclose(tiles[0, :3, :3, :3], published["EXPECTED_PIXEL_VALUES_1"], atol=1e-6)
    assert np.allclose(tiles[0, :3, -3:, -3:], published["EXPECTED_PIXEL_VALUES_2"], atol=1e-6)


def test_canvases_of_up_to_36_tiles(real: Callable[[str], Real]):
    """Random sizes of all shapes, exact canvases and their neighbours, which are where ties fall."""
    processor = real(PERCEPTION_LM).processor.image_processor
    draw = random.Random(0)
    sizes = [(draw.randint(1, 60), draw.randint(1, 60)) for _ in range(100)]
    sizes += [(int(10 ** draw.uniform(0, 3.6)), int(10 ** draw.uniform(0, 3.6))) for _ in range(100)]
    edges = [
        (columns * 10 + a, rows * 10 + b)
        for columns in range(1, 7)
        for rows in range(1, 7)
        for a in (-1, 0, 1)
        for b in (0, 1)
    ]
    for most in range(1, 37):
        processor.max_num_tiles = most
        supported = processor._find_supported_aspect_ratios()
        processor._find_supported_aspect_ratios = lambda supported=supported: supported  # it is slow
        found = set()
        for width, height in [*sizes, *edges, *((c * 10, r * 10) for pairs in supported.values() for c, r in pairs)]:
            theirs = processor._fit_image_to_canvas(width, height, 10)
            theirs = theirs or processor._find_closest_aspect_ratio(width, height, 10)
            assert image.canvas(width, height, 10, most) == theirs, (width, height, most)
            found.add(theirs)
        assert max(columns * rows for columns, rows in found) == most
        del processor._find_supported_aspect_ratios


def test_published_numbers_of_tiles(real: Callable[[str], Real]):
    one = real(PERCEPTION_LM)
    one.edit(lambda settings: settings["image_processor"].update(max_num_tiles=4))
    assert len(image.tiles(noise(450, 500), one.behaviour.image)) * TILE_TOKENS[PERCEPTION_LM] == 1280
    one.edit(lambda settings: settings["image_processor"].update(vision_input_type="vanilla"))
    assert isinstance(one.behaviour.image, Resize)
    theirs = one.processor.image_processor(noise(450, 500), return_tensors="np")["pixel_values"][0]
    assert_same_pixels(image.tiles(noise(450, 500), one.behaviour.image), theirs, one.behaviour.image)


def test_videos_as_files_arrays_and_folders(real: Callable[[str], Real], assets: Path, tmp_path: Path):
    one = real(PERCEPTION_LM)
    processor, recipe = one.processor.video_processor, one.behaviour.video
    assert recipe.frames == 32
    recipe = Video(7, recipe.tile)
    path = assets / "video" / "dog.mp4"
    frames, _ = load_video(str(path), num_frames=7, backend="pyav")
    theirs = processor(videos=frames, return_tensors="np")
    ours = video.tiles(path, recipe)
    assert_same_pixels(ours, np.asarray(theirs["pixel_values_videos"][0]), recipe.tile)

    array = np.random.default_rng(0).integers(0, 256, (12, 33, 70, 3), np.uint8)
    folder = tmp_path / "frames"
    folder.mkdir()
    for index, frame in enumerate(array):
        Image.fromarray(frame).save(folder / f"frame{index}.png")  # frame10 comes after frame9
    (folder / "notes.txt").write_text("no picture")
    metadata = {"total_num_frames": 12, "fps": 4}
    theirs = processor(
        videos=array, video_metadata=[metadata], num_frames=7, do_sample_frames=True, return_tensors="np"
    )
    for given in (array, folder, str(folder)):
        assert_same_pixels(video.tiles(given, recipe), np.asarray(theirs["pixel_values_videos"][0]), recipe.tile)
    whole = processor(videos=array[:7], return_tensors="np")["pixel_values_videos"][0]
    assert_same_pixels(video.tiles(array[:7], Video(32, recipe.tile)), np.asarray(whole), recipe.tile)


TEXTS = [
    "", "caption en", "  spaced   out \n lines ", "What is this?", "Où est-ce? ½ ﬁ ① é 你好 🙂", "detect cat ; dog",
    "<loc0012> what?", "segment <seg012>", "1234567 it's they're", "<grounding> An image of", "a<phrase> b </phrase>c",
    "<grounding><phrase> it</phrase><object><patch_index_0044><patch_index_0863></object> is", "\ttab", "</s> <unk>",
]  # fmt: skip


@pytest.mark.parametrize("name", list(CONFIGS))
def test_prompts_have_the_ids_of_the_processor(real: Callable[[str], Real], name: str):
    one = real(name)
    processor, behaviour, picture = one.processor, one.behaviour, noise(80, 60)
    prompts = Prompts(one.folder, behaviour.prompt, TILE_TOKENS[name])
    tiles = image.tiles(picture, behaviour.image)
    for text in TEXTS:
        ours = prompts.encode(text, [tiles])
        if name == PALIGEMMA:
            inputs = processor(images=picture, text=f"<image>{text}")
        elif name == KOSMOS2:
            inputs = processor(images=picture, text=text)
            mask = np.asarray(inputs["image_embeds_position_mask"], bool)
            assert (mask == ours.places).all()
            assert prompts.encode(text, []).ids.tolist() == processor(text=text)["input_ids"], text
        else:
            content = [{"type": "image"}, {"type": "text", "text": text}]
            chat = processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
            inputs = processor(images=picture, text=chat, add_special_tokens=False)
        ids = np.asarray(inputs["input_ids"]).ravel()
        assert ids[~ours.places].tolist() == ours.ids[~ours.places].tolist(), text
        if name != KOSMOS2:  # there the ids at the places are a numbering, never looked up
            assert ids.tolist() == ours.ids.tolist(), text


def test_answers_decode_as_transformers_decodes_them(real: Callable[[str], Real]):
    one = real(KOSMOS2)
    for clean in (False, True):
        path = one.folder / "tokenizer_config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {"clean_up_tokenization_spaces": clean}))
        tokenizer, prompts = one.processor.tokenizer, Prompts(one.folder, one.behaviour.prompt, 64)
        for seed in range(200):
            ids = [random.Random(seed * 100 + place).randrange(65037) for place in range(12)]
            ids += tokenizer(" it 's . I 'm here , do n't ! </phrase> . ? ' a", add_special_tokens=False)["input_ids"]
            assert prompts.decode(ids) == tokenizer.decode(ids, skip_special_tokens=True)


def test_entities_of_published_and_random_answers(real: Callable[[str], Real], assets: Path):
    """Equal to `post_process_generation`, also where tags are missing, nested, swapped or repeated."""
    one = real(KOSMOS2)
    processor, format = one.processor, one.behaviour.grounding
    published = json.loads((assets / "expected" / "summary.json").read_text())["kosmos2"]
    texts = [published["EXPECTED_PROCESSED_TEXT"], published["EXPECTED_PROCESSED_TEXT_LONG"]]
    caption, found = entities.read(texts[0], format, 1, 1)
    assert caption == "An image of a snowman warming himself by a fire."
    assert [(one.label, one.start, one.end) for one in found] == [("a snowman", 12, 21), ("a fire", 41, 47)]
    assert found[0].boxes[0].xmin == 0.390625
    parts = [
        "<phrase>", "</phrase>", "<object>", "</object>", "</delimiter_of_multi_objects/>", "<patch_index_0044>",
        "<patch_index_0863>", "<patch_index_0001><patch_index_0001>", "<patch_index_0000><patch_index_0031>",
        "<grounding>", " a cat", "dog ", "  ", ".", "\n", "<", ">", "é",
        "<phrase> a b</phrase><object><patch_index_0002><patch_index_0700></object>",
        "<object><patch_index_0002><patch_index_0700></delimiter_of_multi_objects/><patch_index_0009><patch_index_0029></object>",
    ]  # fmt: skip
    draw = random.Random(0)
    texts += ["".join(draw.choices(parts, k=draw.randint(0, 12))) for _ in range(5000)]
    for text in texts:
        caption, theirs = processor.post_process_generation(text)
        ours_caption, ours = entities.read(text, format, 1, 1)
        boxes = [[(box.xmin, box.ymin, box.xmax, box.ymax) for box in one.boxes] for one in ours]
        assert ours_caption == caption, text
        assert [(one.label, (one.start, one.end), some) for one, some in zip(ours, boxes)] == theirs, text


def test_boxes_of_phrases_become_the_tokens_of_the_processor(real: Callable[[str], Real]):
    one = real(KOSMOS2)
    behaviour, processor, draw = one.behaviour, one.processor, random.Random(0)
    prompts = Prompts(one.folder, behaviour.prompt, 64)
    for _ in range(300):
        edges = [sorted(draw.sample(range(1001), 2)) for _ in range(2)]
        box = (edges[0][0] / 1000, edges[1][0] / 1000, edges[0][1] / 1000, edges[1][1] / 1000)
        boxes = draw.choice([[box, None], [[box, (3, 70)], []], [(0, 1023), [box]], [None, None]])
        text = "<grounding> see<phrase> a cat</phrase> and <phrase>dogs</phrase> there"
        ours = prompts.encode(entities.with_boxes(text, boxes, behaviour.grounding), []).ids.tolist()
        assert ours == processor(text=text, bboxes=boxes)["input_ids"], boxes


@pytest.mark.parametrize("name", list(CONFIGS))
def test_older_files_of_settings(real: Callable[[str], Real], name: str):
    """Before transformers 5 each processor had a file of its own."""
    one = real(name)
    before = one.behaviour
    settings = json.loads((one.folder / "processor_config.json").read_text())
    files = {"image_processor": "preprocessor_config.json", "video_processor": "video_preprocessor_config.json"}
    for part, file in files.items():
        if part in settings:
            (one.folder / file).write_text(json.dumps(settings.pop(part)))
    (one.folder / "processor_config.json").write_text(json.dumps(settings))
    if (template := one.folder / "chat_template.jinja").exists():
        (one.folder / "chat_template.json").write_text(json.dumps({"chat_template": template.read_text()}))
        template.unlink()
    assert one.behaviour == before


def test_the_square_size_of_older_settings(real: Callable[[str], Real]):
    one = real(KOSMOS2)
    before = one.behaviour
    one.edit(lambda settings: settings["image_processor"].update(size={"shortest_edge": 224}, use_square_size=True))
    assert one.behaviour == before
    one.edit(lambda settings: settings["image_processor"].pop("use_square_size"))
    with pytest.raises(CheckpointError, match="shortest_edge"):
        _ = one.behaviour
    one.edit(lambda settings: settings["image_processor"].update(size={"height": 300, "width": 224}))
    with pytest.raises(CheckpointError, match="crops 300 x 224 to 224 x 224"):
        _ = one.behaviour
