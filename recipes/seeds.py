"""Seeds: the sizes that nexfort's own documents ran, which `--shapes seed` stands for."""

from aot.request.shape import Shape

SQUARES = tuple(Shape(side, side) for side in (1024, 512, 768, 256))  # --run_multiple_resolutions of text_to_image.py
SDXL_SQUARES = tuple(Shape(side, side) for side in (960, 720, 896, 768))  # the same of text_to_image_sdxl.py
RARE = (Shape(544, 408),)  # --run_rare_resolutions
